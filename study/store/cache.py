"""The user's cache folder."""

import os
from pathlib import Path

import platformdirs

from study.errors import StudyError


def cache_folder() -> Path:
    """The user's cache folder, created if absent. The variable ``STUDY_CACHE`` moves it."""
    place = os.environ.get("STUDY_CACHE") or platformdirs.user_cache_dir("study")
    folder = Path(place).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"can't create the cache folder {folder} ({error.strerror})"
        raise StudyError(f"{why}: set STUDY_CACHE to a folder that you may write") from None
    return folder
