"""``study export``, ``study fold`` and ``study import``: adapters in PEFT's format."""

import json
import math
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from study.adapters.bank import LoraPair
from study.config.compose import CONF, parse
from study.config.hints import as_study_errors
from study.config.values import written
from study.errors import StudyError, command_line
from study.store import ADAPTER, damage, find_cell, is_archived, replacing
from study.store.files import make_folder, storing, write_text
from study.sweeps.cells import plan
from study.training.peft_format import CONFIG, WEIGHTS, flat, read_adapter

RECORD = "study_record.json"
"""The cell's record in an exported folder: how the adapter was drawn and trained."""


def export(study_dir: Path, cell: str, folder: Path, fold_scaling: bool = False) -> Path:
    """Copy the trained adapter of a cell to a new ``folder``, or fold it (:func:`fold`)."""
    adapter = _kept_adapter(study_dir, cell)
    with _new(folder) as work:
        if fold_scaling:
            write_folded(adapter, work)
        else:
            shutil.copytree(adapter, work)
        shutil.copy(adapter.parent / "record.json", work / RECORD)
    return folder


def fold(folder: Path, out: Path) -> str:
    with _new(out) as work:
        return f"{out}: {write_folded(folder, work)}"


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    with storing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StudyError(f"{folder} already exists: give a new folder")
    make_folder(folder.parent)
    with replacing(folder) as work:
        yield work


def write_folded(folder: Path, out: Path) -> str:
    """Write both files of :func:`fold`: ``lora_alpha = r`` without patterns, and zeros where a
    layer has a lower rank. B keeps its type, and other trained weights stay as they are."""
    adapter, tensors = read_adapter(folder, with_others=True), load_file(folder / WEIGHTS)
    rank = max(pair.A_RD.shape[-2] for pair in adapter.pairs.values())
    lost = whole = 0.0
    for layer, (A, B, gamma) in adapter.pairs.items():
        more, keys = rank - A.shape[-2], adapter.keys[layer]
        exact = flat(LoraPair(pad(A, (0, 0, 0, more)), pad(gamma * B.double(), (0, more)), 1.0))
        folded = {key: exact[factor] for factor, key in keys.items()}
        if (bias := keys["B"].removesuffix("weight") + "bias") in tensors:
            folded[bias] = gamma * tensors[bias].double()
        for key, value in folded.items():
            rounded = value.to(tensors[key].dtype).contiguous()
            _check_rounded(rounded, tensors[key], f"{folder / WEIGHTS}: {key} times {gamma:.3g}")
            tensors[key] = rounded
        rounded = tensors[keys["B"]]
        lost += float((rounded.double() - exact["B"]).square().sum())
        whole += float(exact["B"].square().sum())
    plain = {"r": rank, "lora_alpha": rank, "use_rslora": False}
    config = {**adapter.config, **plain, "rank_pattern": {}, "alpha_pattern": {}}
    out.mkdir()
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    write_text(out / CONFIG, json.dumps(config, indent=2) + "\n")
    share, dtype = math.sqrt(lost / whole) if whole else 0.0, str(rounded.dtype).partition(".")[2]
    return f"gamma is in B, lora_alpha = r = {rank}; {dtype} rounds B by {share:.1g} of its norm"


def _check_rounded(rounded: Tensor, before: Tensor, named: str) -> None:
    """Raise if the type of a folded weight can't hold it: infinite, or all zero."""
    is_finite = bool(rounded.double().isfinite().all())
    if is_finite and (bool(rounded.double().any()) or not before.double().any()):
        return
    became, dtype = "all zero" if is_finite else "infinite", str(rounded.dtype).partition(".")[2]
    why = f"{named} is {became} in {dtype}"
    raise StudyError(f"{why}: save the adapter in float32, or correct its lora_alpha")


def inspect_adapter(folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """A description of a PEFT adapter, and the commands that train it further or measure it."""
    found = read_adapter(folder)
    chosen = list(overrides)
    if not any(override.startswith("model=") for override in chosen):
        if not (named := found.config.get("base_model_name_or_path")):
            raise StudyError(f"{folder} names no base: choose one with model=hf model.path=...")
        chosen += ["model=hf", f"model.path={written(named)}"]
    if dropout := found.config.get("lora_dropout"):
        chosen.append(f"adapter.dropout={dropout}")
    chosen.append(f"adapter.path={written(str(folder.resolve()))}")
    with as_study_errors(), initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=chosen)
    (cell,) = plan([parse(composed)])
    ranks = {pair.A_RD.shape[0] for pair in found.pairs.values()}
    gammas = {float(pair.gamma) for pair in found.pairs.values()}
    measured = "name=measured", "train.steps=1", "probes.steps=[0]"
    return [
        f"{len(found.pairs)} layers, rank {span(ranks)}, gamma {span(gammas)} "
        f"({found.scaling}), on {cell.card.name}",
        f"to train it further:  {command_line('train', *chosen, 'name=continued')}",
        f"to measure it:        {command_line('train', *chosen, *measured)}",
    ]


def _kept_adapter(study_dir: Path, cell: str) -> Path:
    folder, record = find_cell(study_dir, cell)
    if (folder / ADAPTER).is_dir():
        wrong = damage(folder, record, "adapter")
    elif record["status"] == "diverged":
        raise StudyError(f"cell {folder.name} has diverged: it has no adapter")
    elif is_archived(folder):
        again = "train its configuration again with train.save_adapter=true"
        raise StudyError(f"cell {folder.name}: it is archived without its adapter: {again}")
    else:
        wrong = "it has no adapter"
    if wrong:
        place = shlex.quote(f"--config-path={folder.resolve()}")
        init = "adapter.init=kaiming " if record["config"]["adapter"].get("path") else ""
        again = f"study train {place} --config-name=config {init}train.save_adapter=true"
        raise StudyError(f"cell {folder.name}: {wrong}: train it again with {again}")
    return folder / ADAPTER


def span(numbers: Iterable[Any]) -> str:
    """``8``, or ``8 to 64``."""
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if math.isclose(low, high) else f"{low:g} to {high:g}"
