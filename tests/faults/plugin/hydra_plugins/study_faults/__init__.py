"""Hydra imports its plugins in every process of a sweep, so this one puts the faults there."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from tests.faults.instrument import install_from_environment

install_from_environment()


class Faults(SearchPathPlugin):
    """Adds nothing. The registry of plugins names it, and workers import what they unpickle."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Leaves the search path as it is."""
