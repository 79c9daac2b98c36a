"""Completion of the overrides of ``study train``, for a shell."""

from collections.abc import Sequence

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from study.config.compose import CONF
from study.config.keys import choices


class _Words(DefaultCompletionPlugin):
    def __call__(self, line: str) -> list[str]:
        """Hydra's completions of the last word of ``line``: groups, options, keys and defaults."""
        return self._query("config", line)


def complete(overrides: Sequence[str], word: str) -> list[str]:
    """What ``word`` may become after ``overrides``, which stand before it on the command line.

    Those are Hydra's completions and, for the value of a key, the choices of its bound. Of values
    with commas between them, which a sweep has, the last one is completed.
    """
    before, comma, last = word.rpartition(",")
    if comma and "=" not in before:
        return []
    key, equals, _ = (before or word).partition("=")
    asked = f"{key}={last}" if comma else word
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # A single space after the last override makes Hydra complete a new word.
        found = _Words(GlobalHydra.instance().config_loader())(" ".join([*overrides, asked]))
    if equals:
        found += [f"{key}={choice}" for choice in choices(key)]
    found = [each for each in dict.fromkeys(found) if each.startswith(asked)]
    if not comma:
        return found
    given = before.partition("=")[2].split(",")
    values = [each.partition("=")[2] for each in found]
    return [f"{before},{value}" for value in values if value not in given]
