"""A run of the transformers Trainer as a cell: its configuration, identity and record."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from study.adapters import LoraPair
from study.config import (
    AdapterConfig,
    CellConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbesConfig,
    Sources,
    TrainConfig,
    identity,
    optimizer_config,
)
from study.config.literals import literal
from study.errors import StudyError
from study.probes import NormProbe
from study.store import CellWriter, Damaged
from study.store.provenance import provenance
from study.training.devices import describe_device
from study.vocabulary.inits import IMPORTED
from study.vocabulary.optimizers import OPTIMIZERS


def open_cell(
    trainer: Any,
    study_dir: Path,
    adapter: str,
    init: str,
    probe: NormProbe,
    probes: ProbesConfig,
    data: str | None,
) -> tuple[CellConfig, CellWriter]:
    """The cell of one adapter of ``trainer``'s run, and an open writer for it.

    Call it when training begins; ``init`` is from :func:`init_of`. The same run has the same id and
    replaces its earlier rows. A run that is resumed from a checkpoint keeps the rows before it.
    Raises :class:`StudyError` if the optimizer does not train the adapter and if the folder cannot
    be written.
    """
    pairs = [layer.pairs()[0] for layer in probe.layers]
    config = CellConfig(
        name=study_dir.name,
        results_dir=str(study_dir.parent),
        plots_dir="plots",
        adapter=_adapter_config(trainer.model.peft_config[adapter], init, pairs),
        optimizer=_optimizer_config(trainer.optimizer, pairs[0], adapter),
        probes=probes,
        **_run_config(trainer, data),
    )
    record = _record(trainer, config, adapter, probe)
    folder, first = study_dir / "cells" / record["cell_id"], trainer.state.global_step
    text = OmegaConf.to_yaml(OmegaConf.create(literal(asdict(config))))
    try:
        return config, CellWriter.open(folder, text, record, first if folder.exists() else 0)
    except Damaged as damage:
        warnings.warn(f"no rows before step {first} are kept: {damage}", stacklevel=2)
        return config, CellWriter.open(folder, text, record)


def _run_config(trainer: Any, data: str | None) -> dict[str, Any]:
    """The parts of a cell's configuration that all adapters of a run share."""
    args, model, steps = trainer.args, trainer.model, trainer.state.max_steps
    sequence_length: Any = getattr(args, "max_length", None)  # TRL has it, the Trainer does not
    return {
        "device": args.device.type,
        "seed": args.seed,
        "precision": "bf16" if args.bf16 or model.dtype == torch.bfloat16 else "float32",
        "model": ModelConfig("hf", _model_name(model)),
        "data": DataConfig(
            name=data or _data_name(trainer.train_dataset),
            sequence_length=sequence_length,
            heldout=0,
            seed=args.seed if args.data_seed is None else args.data_seed,
        ),
        "train": TrainConfig(
            steps=steps,
            batch_size=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            clip=args.max_grad_norm or None,
            schedule=str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            warmup=args.get_warmup_steps(steps),
        ),
    }


def _record(trainer: Any, config: CellConfig, adapter: str, probe: NormProbe) -> dict[str, Any]:
    """The record of a cell, with its identity."""
    peft_config = trainer.model.peft_config[adapter].to_dict()
    made_from = {"model": trainer.model.config.to_dict(), "peft": peft_config}
    sources = Sources(_sha256(made_from), "", _sha256(config.data.name))
    options = json.loads(_json(peft_config))
    return {
        "cell_id": identity(config, sources),
        "study": config.name,
        "model": config.model.path,
        "trained_by": f"{type(trainer).__name__} of {_package(trainer)}",
        "data": config.data.name,
        "gamma": probe.layers[0].pairs()[0].gamma,
        "sources": asdict(sources),
        "config": asdict(config),
        "peft": {"adapter": adapter, "variants": probe.variants, **options},
        "started": now(),
        **provenance(),
        **describe_device(trainer.args.device),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def init_of(model: Any, adapter: str, probe: NormProbe) -> str:
    """The init of the adapter that ``probe`` reads; call it before a checkpoint is loaded.

    If B is not 0, the adapter was trained before, and theory does not predict its first steps.
    """
    if any(bool(layer.pairs()[0].B_OR.any()) for layer in probe.layers):
        return IMPORTED
    how = model.peft_config[adapter].init_lora_weights
    return "kaiming" if how is True else f"peft_{how}"


def _adapter_config(peft_config: Any, init: str, pairs: list[LoraPair]) -> AdapterConfig:
    """The adapter's configuration in PEFT, as ours."""
    ranks = sorted({pair.A_RD.shape[0] for pair in pairs})
    if len(ranks) > 1:
        warnings.warn(
            f"layers differ in rank ({', '.join(map(str, ranks))}): the cell has rank "
            f"r={peft_config.r}; to fit scaling exponents, run without rank_pattern",
            stacklevel=2,
        )
    targets = peft_config.target_modules
    return AdapterConfig(
        rank=peft_config.r,
        alpha=float(peft_config.lora_alpha),
        scaling="rslora" if peft_config.use_rslora else "lora",
        targets=targets if isinstance(targets, str) else sorted(targets or ()),
        init=init,
        dropout=peft_config.lora_dropout,
    )


def _optimizer_config(optimizer: Optimizer, pair: LoraPair, adapter: str) -> OptimizerConfig:
    """The optimizer of the adapter, read from its class and its parameter groups."""
    group_of = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    try:
        of_A, of_B = group_of[id(pair.A_RD)], group_of[id(pair.B_OR)]
    except KeyError:
        raise StudyError(
            f"the optimizer does not train adapter {adapter!r}: make it trainable "
            "(is_trainable=True) before you build the Trainer"
        ) from None
    stepping = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    name = _optimizer_name(stepping, of_A)
    kind = optimizer_config(name) if name in OPTIMIZERS else OptimizerConfig
    known = {f.name: of_A[f.name] for f in fields(kind) if f.name in of_A}
    lr_A, lr_B = (group.get("initial_lr", group["lr"]) for group in (of_A, of_B))  # without warm-up
    known |= {
        "name": name,
        "lr": float(lr_A),
        "loraplus_lr_ratio": float(lr_B / lr_A) if lr_A else 1.0,
    }
    if "betas" in known:
        known["betas"] = list(known["betas"])
    return kind(**{"weight_decay": 0.0, **known})


def _optimizer_name(optimizer: Optimizer, options: Mapping[str, Any]) -> str:
    """Our name of a torch optimizer with these options; for one that we lack, its class's name."""
    name = type(optimizer).__name__.lower()
    shared = {
        row.built_from: ours for ours, row in OPTIMIZERS.items() if row.built_from[:1] == (name,)
    }
    fitting = [parts for parts in shared if all(options.get(option) for option in parts[1:])]
    return shared[max(fitting, key=len)] if fitting else name


def _package(thing: Any) -> str:
    """The package that defines the class of ``thing``."""
    return type(thing).__module__.partition(".")[0]


def _model_name(model: nn.Module) -> str:
    """The name or path that the base was loaded from; for one built in memory, its class."""
    config: Any = model.config
    base: Any = getattr(model, "get_base_model", lambda: model)()  # PEFT's wrapper has one
    return getattr(config, "_name_or_path", "") or str(
        (config.architectures or [type(base).__name__])[0]
    )


def _data_name(dataset: Any) -> str:
    """A dataset of the datasets library by its fingerprint, another one by its type and length."""
    if fingerprint := getattr(dataset, "_fingerprint", None):
        return f"dataset {fingerprint}"
    length = f" of {len(dataset)}" if hasattr(dataset, "__len__") else ""
    return f"{type(dataset).__name__}{length}"


def _json(content: Any) -> str:
    """Canonical JSON: sets sorted; ``str`` of anything that JSON cannot hold."""

    def plain(value: Any) -> Any:
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)

    return json.dumps(content, sort_keys=True, default=plain)


def _sha256(content: Mapping[str, Any] | str) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()
