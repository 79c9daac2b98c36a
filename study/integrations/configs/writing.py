"""The files of an imported experiment. Base and data have their own, so that ``model=tiny`` or
``data=pydoc`` on the command line replaces all of their settings."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from study.config.compose import CONF, compose
from study.config.hints import as_study_errors
from study.config.values import check_folder_name, literal, written
from study.errors import StudyError, command_line, printable
from study.integrations.configs.tools import Experiment
from study.store.files import write_text


def write(
    experiment: Experiment, name: str, folder: Path, *, force: bool = False
) -> tuple[list[Path], str]:
    """Write ``folder/experiment/name.yaml``, and the files of its base and data, once the
    experiment composes. Returns the files, and the command that trains it."""
    check_folder_name(name, "--name")
    is_own = folder.resolve() == CONF.resolve()
    words = [] if is_own else [f"--config-dir={folder.as_posix()}"]
    command = command_line("train", *words, f"experiment={written(name)}")
    texts = _texts(experiment, name, command)
    for group in texts:
        path = folder / group / f"{name}.yaml"
        if not is_own and (CONF / group / path.name).exists():
            raise StudyError(f"{group}={name} is a name of the toolkit: give another --name")
        if path.exists() and not force:
            raise StudyError(f"{path} already exists: give another --name, or --force")
    _check(experiment, name, texts)
    try:
        return _write(texts, name, folder), command
    except OSError as error:
        why = f"cannot write to {folder} ({error.strerror}): give another --to"
        raise StudyError(why) from None


def _write(texts: dict[str, str], name: str, folder: Path) -> list[Path]:
    paths = []
    for group, text in texts.items():
        paths.append(folder / group / f"{name}.yaml")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_text(paths[-1], text)
    return paths


def _texts(experiment: Experiment, name: str, command: str) -> dict[str, str]:
    under: dict[str, dict[str, Any]] = {"": {}, "model": {}, "data": {}}
    for key, value in experiment.values.items():
        group, _, rest = key.rpartition(".")
        under.setdefault(group, {})[rest] = value
    own = {group: values for group in ("model", "data") if (values := under.pop(group))}
    chosen = experiment.groups | dict.fromkeys(own, name)
    body = {
        "defaults": [{f"override /{group}": option} for group, option in chosen.items()],
        "name": name,
        **under.pop(""),
        **under,
    }
    if experiment.sweep:
        params = {key: ",".join(map(written, values)) for key, values in experiment.sweep.items()}
        body["hydra"] = {"mode": "MULTIRUN", "sweeper": {"params": params}}
    lines = ["@package _global_", experiment.origin, command, *experiment.lines()]
    texts = {"experiment": _yaml(lines, body)}
    for group, values in own.items():
        defaults = [experiment.groups[group], "_self_"]
        texts[group] = _yaml([experiment.origin], {"defaults": defaults, **values})
    return texts


def _yaml(comments: Iterable[str], body: dict[str, Any]) -> str:
    """OmegaConf's YAML, which reads some texts as numbers that other YAML does not."""
    head = "".join(f"# {printable(line)}\n" for line in comments)
    return head + OmegaConf.to_yaml(OmegaConf.create(literal(body)))


def _check(experiment: Experiment, name: str, texts: dict[str, str]) -> None:
    sweep = experiment.sweep.items()
    swept = [[f"{key}={written(value)}"] for key, values in sweep for value in values]
    GlobalHydra.instance().clear()
    with (
        tempfile.TemporaryDirectory() as place,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        _write(texts, name, Path(place))
        shared = [f"hydra.searchpath=[file://{place}]", f"experiment={written(name)}"]
        if experiment.groups.get("data") == "file" and "data.path" not in experiment.values:
            shared.append("data.path=given_when_you_train.jsonl")
        try:
            with as_study_errors():
                compose(GlobalHydra.instance().config_loader(), "config", shared, [[], *swept])
        except StudyError as error:
            raise StudyError(f"{experiment.origin}: {error}") from None
