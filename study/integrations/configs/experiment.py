"""An imported experiment, and the files that ``study train`` reads it from.

    conf/experiment/NAME.yaml   conf/model/NAME.yaml   conf/data/NAME.yaml

Base and data have files of their own, so that ``model=tiny`` or ``data=pydoc`` on the command line
replaces all of their settings.
"""

import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from study.config.compose import CONF, compose
from study.config.hints import as_study_errors
from study.config.values import check_folder_name, literal
from study.errors import StudyError, printable
from study.integrations import overrides
from study.integrations.configs.notes import Notes
from study.store import write_text

OWN_GROUPS = ("model", "data")
"""Groups that get a file of their own. Values of other groups are in the experiment's file."""
MOST_SWEPT = 1000
"""Values of all swept keys. Each is composed and checked."""


@dataclass
class Experiment:
    """A configuration of another tool, translated.

    - ``origin``: the file that it was made from;
    - ``groups``: the option of each group; ``values``: settings by dotted key;
    - ``notes``: what is trained differently, what was assumed, and what was left out;
    - ``sweep``: lists of values by dotted key or group. All combinations are trained.
    """

    origin: str
    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    sweep: dict[str, list[Any]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Groups and values in one mapping."""
        return {**self.groups, **self.values}


@dataclass(frozen=True)
class Written:
    """The files of an experiment, and the command that trains it."""

    paths: list[Path]
    command: str


def write(experiment: Experiment, name: str, folder: Path, *, force: bool = False) -> Written:
    """Write ``folder/experiment/name.yaml``, and the files of its base and data.

    The experiment is first composed and checked, as ``study train`` does it. Raises
    :class:`StudyError` for a value that ``study train`` refuses, a name that is in use and a folder
    that cannot be written; then nothing is written.
    """
    check_folder_name(name, "--name")
    swept = sum(map(len, experiment.sweep.values()))
    if swept > MOST_SWEPT:
        raise StudyError(f"the sweep has {swept} values: give at most {MOST_SWEPT}")
    is_own = folder.resolve() == CONF.resolve()
    words = [] if is_own else [f"--config-dir={folder.as_posix()}"]
    command = shlex.join(["study", "train", *words, f"experiment={overrides.written(name)}"])
    texts = {folder / path: text for path, text in _files(experiment, name, command).items()}
    for path in texts:
        group = path.parent.name
        if not is_own and (CONF / group / path.name).exists():
            raise StudyError(f"{group}={name} is one of the toolkit's own: give another --name")
        if path.exists() and not force:
            raise StudyError(
                f"{path} already exists: give another --name, or --force to overwrite it"
            )
    _check(experiment, name, command)
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    except OSError as error:
        raise StudyError(f"cannot write {path} ({error.strerror}): give another --to") from None
    return Written(list(texts), command)


def _files(experiment: Experiment, name: str, command: str) -> dict[str, str]:
    """The text of every file, by its path in the configuration folder; the experiment is first."""
    options = {group: _under(group, experiment.values) for group in OWN_GROUPS}
    files = {f"experiment/{name}.yaml": _experiment_text(experiment, name, command, options)}
    for group, values in options.items():
        if values:
            head = f"# {printable(experiment.origin)}\n"
            body = {"defaults": [experiment.groups[group], "_self_"], **values}
            files[f"{group}/{name}.yaml"] = head + _yaml(body)
    return files


def _experiment_text(
    experiment: Experiment, name: str, command: str, options: Mapping[str, Any]
) -> str:
    lines = ["@package _global_", experiment.origin, command, *experiment.notes.lines()]
    chosen = {
        group: name if options.get(group) else option for group, option in experiment.groups.items()
    }
    body: dict[str, Any] = {
        "defaults": [{f"override /{group}": option} for group, option in chosen.items()]
    }
    body["name"] = name
    for key, value in experiment.values.items():
        group, dot, rest = key.partition(".")
        if dot and group not in OWN_GROUPS:
            body.setdefault(group, {})[rest] = value
        elif not dot:
            body[key] = value
    if experiment.sweep:
        params = {
            key: ",".join(map(overrides.written, values))
            for key, values in experiment.sweep.items()
        }
        body["hydra"] = {"mode": "MULTIRUN", "sweeper": {"params": params}}
    comments = "".join(f"# {printable(line)}\n" for line in lines)
    return comments + _yaml(body)


def _under(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{group}.")
    }


def _check(experiment: Experiment, name: str, command: str) -> None:
    """Compose and check the experiment alone, and with each swept value."""
    swept = [
        f"{key}={overrides.written(value)}"
        for key, values in experiment.sweep.items()
        for value in values
    ]
    GlobalHydra.instance().clear()
    with (
        tempfile.TemporaryDirectory() as place,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        for path, text in _files(experiment, name, command).items():
            file = Path(place, path)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        shared = [f"hydra.searchpath=[file://{place}]", f"experiment={overrides.written(name)}"]
        loader = GlobalHydra.instance().config_loader()
        try:
            with as_study_errors():
                compose(loader, "config", shared, [[], *([override] for override in swept)])
        except StudyError as error:
            raise StudyError(f"{experiment.origin}: {error}") from None


def _yaml(body: Mapping[str, Any]) -> str:
    """``body`` in OmegaConf's YAML, which reads some texts as numbers that other YAML does not."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(dict(body))))
