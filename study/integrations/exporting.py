"""``study export`` and ``study import``: adapters in PEFT's format."""

import json
import math
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from study.config import ModelConfig
from study.config.compose import CONF, parse
from study.config.hints import as_study_errors
from study.errors import StudyError
from study.integrations.configs.writing import written
from study.models import WITH_EXPERTS, load_base, load_tokenizer
from study.models.messages import quiet
from study.store import ADAPTER, damage, find_cell, is_archived, replacing
from study.store.files import make_folder, storing, write_text
from study.sweeps.cells import plan
from study.training.peft_format import CONFIG, PeftAdapter, read_adapter

RECORD = "study_record.json"
"""The cell's record in an exported folder: how the adapter was drawn and trained."""


def export(
    study_dir: Path, cell: str, folder: Path, merged: bool = False, fold_scaling: bool = False
) -> Path:
    """Copy the trained adapter of a cell to a new ``folder``, in PEFT's format.

    ``cell`` is an id or its start. ``merged``: write the base with the adapter merged into it, and
    the tokenizer, in float32. In bf16, rounding would lose a sixth of an update whose size is a
    hundredth of the weights. ``fold_scaling``: write ``use_rslora: false`` and
    ``lora_alpha = gamma r``, the same function without the flag.
    """
    adapter, record = _kept_adapter(study_dir, cell)
    base = _merged_base(adapter, record) if merged else None
    with storing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StudyError(f"{folder} already exists: give a new folder")
    make_folder(folder.parent)
    with quiet(), replacing(folder) as work:
        if base is None:
            shutil.copytree(adapter, work)
            if fold_scaling:
                write_text(work / CONFIG, json.dumps(folded(read_adapter(work)), indent=2) + "\n")
        else:
            base.save_pretrained(work)
            load_tokenizer(ModelConfig(**record["config"]["model"])).save_pretrained(work)
        shutil.copy(adapter.parent / "record.json", work / RECORD)
    return folder


def folded(adapter: PeftAdapter) -> dict[str, Any]:
    """The configuration of ``adapter`` with ``use_rslora: false`` and the same gamma per layer."""
    alphas = {
        layer: float(f"{pair.gamma * pair.A_RD.shape[-2]:.12g}")  # 128, not 128.00000000000001
        for layer, pair in adapter.pairs.items()
    }
    # Many readers expect an int.
    whole = {layer: int(a) if a.is_integer() else a for layer, a in alphas.items()}
    usual = Counter(whole.values()).most_common(1)[0][0]
    pattern = {layer: alpha for layer, alpha in whole.items() if alpha != usual}
    return {**adapter.config, "use_rslora": False, "lora_alpha": usual, "alpha_pattern": pattern}


def _merged_base(adapter: Path, record: dict[str, Any]) -> Any:
    """The base of a cell with its adapter merged into it."""
    of_base, of_cell = record["config"]["model"], record["sources"]["model"]
    if of_base.get("quant_bits"):
        raise StudyError(
            f"model.quant_bits={of_base['quant_bits']}: an adapter cannot be merged into quantised "
            "weights: export it without --merged"
        )
    if str(of_cell).endswith(WITH_EXPERTS):
        raise StudyError(
            f"cell {record['cell_id']} adapts experts, and only linear layers are merged here: "
            "export it without --merged, then merge it with merge_and_unload of PEFT"
        )
    base = load_base(ModelConfig(**of_base), torch.device("cpu"), "float32")
    if base.card.fingerprint != of_cell:
        raise StudyError(
            f"{base.card.name} has other weights than cell {record['cell_id']} was trained on: "
            "restore those weights"
        )
    model: Any = base.model
    with torch.no_grad():
        for layer, (A_RD, B_OR, gamma) in read_adapter(adapter).pairs.items():
            linear: Any = model.get_submodule(layer)
            delta_OD = gamma * (B_OR @ A_RD)
            transposed = not hasattr(linear, "in_features")  # Conv1D stores [D, O]
            linear.weight += delta_OD.T if transposed else delta_OD
    model.config.use_cache = True  # it is off for training
    return model


def inspect_adapter(folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """A description of a PEFT adapter, and the commands that continue its training or measure it.

    The base is the one in ``overrides`` (``model=...``), or the one that the adapter names.
    """
    found = read_adapter(folder)
    chosen = list(overrides)
    if not any(override.startswith("model=") for override in chosen):
        if not (named := found.config.get("base_model_name_or_path")):
            raise StudyError(
                f"{folder} names no base: choose one, study import {folder} model=hf model.path=..."
            )
        chosen += ["model=hf", f"model.path={written(named)}"]
    if dropout := found.config.get("lora_dropout"):
        chosen.append(f"adapter.dropout={dropout}")
    chosen.append(f"adapter.path={written(str(folder.resolve()))}")
    with as_study_errors(), initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=chosen)
    (cell,) = plan([parse(composed)])
    ranks = {pair.A_RD.shape[0] for pair in found.pairs.values()}
    gammas = {float(pair.gamma) for pair in found.pairs.values()}
    line = shlex.join(["study", "train", *chosen])
    return [
        f"{len(found.pairs)} layers, rank {span(ranks)}, gamma {span(gammas)} "
        f"({found.scaling}), on {cell.card.name}",
        f"to train it further:  {line} name=continued",
        f"to measure it:        {line} name=measured train.steps=1 probes.steps=[0]",
    ]


def _kept_adapter(study_dir: Path, cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a cell's trained adapter, and the cell's record."""
    folder, record = find_cell(study_dir, cell)
    if (folder / ADAPTER).is_dir():
        wrong = damage(folder, record, "adapter")
    elif record["status"] == "diverged":
        raise StudyError(
            f"cell {folder.name} diverged at step {record['diverged_step']}: it has no adapter"
        )
    elif is_archived(folder):
        again = "train its configuration again with train.save_adapter=true"
        raise StudyError(f"cell {folder.name}: it is archived without its adapter: {again}")
    else:
        wrong = "it has no adapter"
    if wrong:
        place = shlex.quote(f"--config-path={folder.resolve()}")
        init = "adapter.init=kaiming " if record["config"]["adapter"].get("path") else ""
        raise StudyError(
            f"cell {folder.name}: {wrong}: train it again with "
            f"study train {place} --config-name=config {init}train.save_adapter=true"
        )
    return folder / ADAPTER, record


def span(numbers: Iterable[Any]) -> str:
    """``8``, or ``8 to 64``."""
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if math.isclose(low, high) else f"{low:g} to {high:g}"
