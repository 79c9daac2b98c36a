"""``hydra/sweeper=packed``: turns the grid of a multirun into packs of cells, one per launched job.

The sweeper decides which cells run together, the launcher where. The work is done in
``study.sweeps``.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from study.sweeps.cells import Cell
    from study.sweeps.progress import Outcome


@dataclass
class PackedSweeperConf:
    """``params``: the sweep of an experiment, as for Hydra's basic sweeper.

    The command line overrides it.
    """

    _target_: str = "hydra_plugins.study_packed_sweeper.packed_sweeper.PackedSweeper"
    params: dict[str, Any] | None = field(default=None)


ConfigStore.instance().store(
    group="hydra/sweeper", name="packed", node=PackedSweeperConf, provider="study"
)


class PackedSweeper(Sweeper):
    """Packs of all combinations of the swept overrides, without the cells that are complete."""

    def __init__(self, params: DictConfig | None) -> None:
        self.params: Any = {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before :meth:`sweep`."""
        self.hydra_context, self.config = hydra_context, config
        # As written: Hydra has resolved interpolations, and each cell resolves its own.
        params = config.hydra.sweeper.params
        self.params = OmegaConf.to_container(params, resolve=False) if params else {}
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Plan, pack and train until all cells have results. Hydra's basic launcher is not called:
        packs train in this process."""
        # Imported here, because Hydra imports every plugin at start-up.
        from study.config.compose import compose, search_path
        from study.sweeps.app import PLAN_KEY, job_overrides, parallel_jobs

        loader = self.hydra_context.config_loader
        shared, swept = self._axes(arguments)
        grid = [list(cell) for cell in product(*swept)]
        name = self.config.hydra.job.config_name
        found = search_path(self.config.hydra.overrides.hydra)
        # Composed first: a mistake in a value is found before torch is imported, for seconds.
        configs = compose(loader, name, [*found, *shared], grid)
        from study.sweeps import cells, launch, packs, plan

        planned = cells.plan(configs)
        at_a_time = configs[0].pack.devices or parallel_jobs(self.config.hydra.launcher)
        todo = packs.packs(cells.to_train(planned), at_a_time)
        if PLAN_KEY in self.config:
            return plan.show_plan(planned, todo, self.config[PLAN_KEY])
        if isinstance(self.launcher, BasicLauncher):
            return launch.train_here(planned, todo, lambda free: packs.packs(free, at_a_time))
        overrides = {cell.folder: shlex.join(own) for cell, own in zip(planned, grid, strict=True)}
        returns: list[JobReturn] = []

        def one_pass(free: Sequence["Cell"], files: Mapping[Path, Path]) -> list["Outcome"]:
            jobs = []
            for pack in packs.packs(free, at_a_time):
                own = [overrides[cell.folder] for cell in pack]
                jobs.append([*shared, *job_overrides(own, files[pack[0].study_dir])])
            ended = self.launcher.launch(jobs, initial_job_idx=len(returns))
            returns.extend(ended)
            # Accessing the value raises the exception of a job that is not a user's mistake.
            return [job.return_value for job in ended]

        launch.conduct(planned, todo, one_pass, here=False)
        return returns

    def _axes(self, arguments: list[str]) -> tuple[list[str], list[list[str]]]:
        """Overrides that all cells share, and a list of alternatives for each swept key."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        by_key: dict[str, list[str]] = {}
        for override in parser.parse_overrides(
            [*(f"{key}={values}" for key, values in self.params.items()), *arguments]
        ):
            key = override.get_key_element()
            name = key.lstrip("+")
            # The command line comes last and replaces the experiment's own sweep of a key.
            by_key.pop(name, None)
            if override.is_sweep_override():
                if name == "experiment":
                    why = "has sweeps of its own: run study train once for each experiment"
                    raise HydraException(f"{override.input_line}: an experiment {why}")
                by_key[name] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                if not by_key[name]:
                    raise HydraException(f"{override.input_line} has no values to sweep over")
            else:
                by_key[name] = [
                    override.input_line or f"{key}={override.get_value_element_as_str()}"
                ]
        shared = [axis[0] for axis in by_key.values() if len(axis) == 1]
        return shared, [axis for axis in by_key.values() if len(axis) > 1]
