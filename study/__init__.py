"""How does an adapter's scaling behave as its rank grows?

- ``study.train({"adapter.rank": [4, 64]}, name="mine")`` trains a sweep;
- ``study.load("results/quick")`` returns the tables of a finished or running study;
- ``study.record("results/mine", peft_model, optimizer)`` records your own training as a study.

The console script does everything else (``study --help``).
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import errors as errors  # so that `except study.errors.StudyError` needs no import

__version__ = "0.1.0"
__all__ = ["errors", "load", "load_plugins", "record", "train"]
PLUGINS = "STUDY_PLUGINS"
"""The environment variable with the plug-ins of this process and of its child processes."""

if TYPE_CHECKING:
    from study.report import Study


def load_plugins(named: Iterable[str] = ()) -> None:
    """Import plug-ins: modules that add rows to the tables of the package (docs/extending.md).

    Loads the modules in the variable :data:`PLUGINS`, those of installed packages (entry points
    ``study.plugins``), and those ``named``. Modules in the working directory are found too. Call it
    before anything else. Child processes load the same plug-ins. Raises
    :class:`study.errors.StudyError` if a module can't be imported.
    """
    installed = [point.value for point in entry_points(group="study.plugins")]
    known = os.environ.get(PLUGINS, "").split(",")
    names = list(dict.fromkeys(filter(None, [*known, *installed, *named])))
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise errors.StudyError(f"plug-in {name}: {error}") from error
    if names:
        os.environ[PLUGINS] = ",".join(names)


def load(study_dir: str | os.PathLike[str]) -> "Study":
    """A study's tables as pandas frames: ``cells``, ``metrics``, ``probes``, ``exponents``, ...

    A notebook shows what was found, and ``load(...).report()`` writes the report. The exponents are
    computed from the other tables. If that is impossible, they are empty and a warning says why.
    Raises :class:`study.errors.StudyError` if ``study_dir`` holds no study.
    """
    # Here, so that `import study` stays instant.
    from study.analysis.derived import with_derived
    from study.report import Study
    from study.store import load_measured

    tables = load_measured(study_dir)
    try:
        tables = with_derived(tables)
    except errors.StudyError as error:
        logging.getLogger(__name__).warning("no exponents of %s: %s", study_dir, error)
    return Study(**vars(tables), folder=Path(study_dir))


def train(settings: Mapping[str, Any], name: str) -> "Study":
    """Train the study ``name`` as ``study train -m`` does, and :func:`load` it.

    ``settings``: values by key, as on the command line, such as ``{"adapter.rank": [4, 64],
    "optimizer.lr": 1e-3, "experiment": "quick"}``. A list is swept. A list as one value is text:
    ``"[0,1,10]"``. Cells that have results are not trained again. Raises
    :class:`study.errors.StudyError` as the command does.
    """
    from study.sweeps.app import main

    def text(value: Any) -> str:
        words = {None: "null", True: "true", False: "false"}
        return words[value] if value is None or isinstance(value, bool) else str(value)

    lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    words = ["-m", f"name={name}", *(f"{k}={','.join(map(text, of))}" for k, of in lists.items())]
    before = sys.argv  # Hydra reads it
    try:
        main(words)
    finally:
        sys.argv = before
    return load(Path(settings.get("results_dir", "results"), name))


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """``record``, on first use. Its module imports torch, which readers of tables do not need."""
    if name == "record":
        return import_module("study.integrations.recording").record
    raise AttributeError(f"module 'study' has no attribute {name!r}")


if os.environ.get(PLUGINS):  # a child process of a sweep, or a notebook
    load_plugins()
