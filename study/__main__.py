"""``python -m study``: the console script ``study``, for launchers that start a module."""

from study.cli import main

if __name__ == "__main__":
    main()
