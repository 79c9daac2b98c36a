"""Somebody else's run as a cell: what can be measured, its configuration, identity and record."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from study.adapters import LoraPair
from study.config import (
    UNKNOWN_STEPS,
    AdapterConfig,
    CellConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbesConfig,
    Sources,
    TrainConfig,
    chosen,
    identity,
    optimizer_config,
)
from study.config.values import literal
from study.errors import StudyError
from study.probes import NormProbe, active_adapters
from study.store import CellWriter, Damaged, provenance
from study.training.devices import describe_device
from study.vocabulary.inits import IMPORTED
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import SITES, STATS, USUAL


@dataclass(frozen=True)
class Loop:
    """What a training loop says of itself, beside its model and its optimizer.

    - ``results``: the study's folder;
    - ``steps``: the optimizer steps of the whole run; None if that is not known before its end;
    - ``data``: the name of its data in the tables;
    - ``trained_by``: who trains, for the report;
    - ``note``: sentences for the record and the report, on what to know of its numbers;
    - ``varies``: anything else that separates its cells from others, by name.
    """

    results: Path
    seed: int
    precision: str
    data: str
    trained_by: str
    steps: int | None = None
    batch_size: int = 1
    accumulation: int = 1
    data_seed: int | None = None
    sequence_length: int | None = None
    clip: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    note: str = ""
    varies: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model in training: its PEFT name, its init (:func:`init_of`), its probe."""

    name: str
    init: str
    probe: NormProbe


def open_cell(
    loop: Loop,
    adapter: Adapter,
    model: nn.Module,
    optimizer: Optimizer,
    probes: ProbesConfig,
    first: int,
) -> tuple[CellWriter, bool]:
    """An open writer for the cell of one adapter of ``model``; whether it goes on with a cell.

    The same run has the same id and replaces its earlier rows. A run that goes on from step
    ``first`` keeps those rows before it that are there. Raises :class:`StudyError` if the optimizer
    does not train the adapter and if the folder cannot be written.
    """
    pairs = [layer.pairs()[0] for layer in adapter.probe.layers]
    peft_config = peft_configs(model)[adapter.name]
    config = CellConfig(
        name=loop.results.name,
        results_dir=str(loop.results.parent),
        plots_dir="plots",
        device=pairs[0].A_RD.device.type,
        seed=loop.seed,
        precision=loop.precision,
        model=ModelConfig("hf", _model_name(model)),
        data=DataConfig(
            name=loop.data,
            sequence_length=loop.sequence_length,  # type: ignore[arg-type]
            heldout=0,
            seed=loop.seed if loop.data_seed is None else loop.data_seed,
        ),
        adapter=_adapter_config(peft_config, adapter.init, pairs),
        optimizer=_optimizer_config(optimizer, pairs[0], adapter.name),
        train=TrainConfig(
            steps=UNKNOWN_STEPS if loop.steps is None else loop.steps,
            batch_size=loop.batch_size,
            accumulation=loop.accumulation,
            clip=loop.clip,
            schedule=loop.schedule,
            warmup=loop.warmup,
        ),
        probes=probes,
    )
    record = _record(loop, model, config, adapter, peft_config.to_dict())
    folder = loop.results / "cells" / record["cell_id"]
    text = yaml.safe_dump(literal(record["config"]), sort_keys=False, allow_unicode=True)
    try:
        first_step = first if folder.exists() else 0
        return CellWriter.open(folder, text, record, first_step, gaps=True), first_step > 0
    except Damaged as damage:
        warnings.warn(
            f"the rows before step {first} can't be read ({damage}): they are moved to "
            f"{loop.results / 'aside'}",
            stacklevel=2,
        )
        return CellWriter.open(folder, text, record, aside=True), False


def _record(
    loop: Loop, model: Any, config: CellConfig, adapter: Adapter, peft_config: dict[str, Any]
) -> dict[str, Any]:
    """The record of a cell, with its identity."""
    base = getattr(peft_model(model), "config", {})
    described = base.to_dict() if hasattr(base, "to_dict") else dict(base)
    varies = {"varies": dict(loop.varies)} if loop.varies else {}
    made_from = {"model": described, "peft": peft_config} | varies
    sources = Sources(_sha256(made_from), "", _sha256(config.data.name))
    options = json.loads(_json(peft_config))
    return {
        "cell_id": identity(config, sources),
        "study": config.name,
        "model": config.model.path,
        "trained_by": loop.trained_by,
        "data": config.data.name,
        "gamma": adapter.probe.layers[0].pairs()[0].gamma,
        "sources": asdict(sources),
        "config": asdict(config) | dict(loop.varies),
        "peft": {"adapter": adapter.name, "variants": adapter.probe.variants, **options},
        "training_note": loop.note,
        "started": now(),
        **provenance(),
        **describe_device(adapter.probe.layers[0].pairs()[0].A_RD.device),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_adapters(model: nn.Module, probes: ProbesConfig, resumed: bool = False) -> list[Adapter]:
    """The active adapters of ``model``, each with a probe of what ``probes`` asks for.

    Warns of layers whose adapter is not plain LoRA, such as DoRA's. Raises :class:`StudyError` if
    there is none.
    """
    options: dict[str, Any] = {
        "sites": chosen("sites", probes.sites, SITES),
        "stats": chosen("stats", probes.stats, STATS, USUAL),
        "tokens": probes.tokens,
    }
    names = active_adapters(model)
    if not names:
        NormProbe(model)  # raises, and says what is missing
    found = []
    for name in names:
        probe = NormProbe(model, adapter=name, **options)
        if variants := probe.variants:
            layer, variant = next(iter(variants.items()))
            warnings.warn(
                f"adapter {name!r}: {len(variants)} layers ({layer}, ...) are {variant}: their "
                "output is not W0 x + gamma B A x, so they have no adapter_out, adapter_in_grad "
                "and delta_w",
                stacklevel=4,
            )
        found.append(Adapter(name, init_of(model, name, probe, resumed), probe))
    return found


def peft_model(model: nn.Module) -> nn.Module:
    """The module of ``model`` that PEFT adapted: ``model`` itself or, in a wrapper, a part of it.

    Raises :class:`StudyError` if there is none.
    """
    for module in model.modules():
        if isinstance(getattr(module, "peft_config", None), dict):
            return module
    raise StudyError(
        f"{type(model).__name__} has no LoRA layer of PEFT: give the model that get_peft_model "
        "returned"
    )


def peft_configs(model: nn.Module) -> dict[str, Any]:
    """PEFT's configuration of each adapter, by name."""
    adapted: Any = peft_model(model)
    return dict(adapted.peft_config)


def init_of(model: nn.Module, adapter: str, probe: NormProbe, resumed: bool = False) -> str:
    """The init of the adapter that ``probe`` reads; call it before a checkpoint is loaded.

    If B is not 0, the adapter was trained before, and theory does not predict its first steps.
    ``resumed``: a checkpoint of the same run is loaded already, so B says nothing.
    """
    if not resumed and any(bool(layer.pairs()[0].B_OR.any()) for layer in probe.layers):
        return IMPORTED
    how = peft_configs(model)[adapter].init_lora_weights
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
    of_A, of_B = groups_of(optimizer, pair, adapter)
    name = _optimizer_name(optimizer, of_A)
    kind = optimizer_config(name) if name in OPTIMIZERS else OptimizerConfig
    known = {f.name: of_A[f.name] for f in fields(kind) if f.name in of_A}
    for key, option in OPTIMIZERS[name].options.items() if name in OPTIMIZERS else ():
        if option.choices and known[key] is None:
            known[key] = option.choices[0]
    lr_A, lr_B = (group.get("initial_lr", group["lr"]) for group in (of_A, of_B))  # without warm-up
    known |= {
        "name": name,
        "lr": float(lr_A),
        "loraplus_lr_ratio": float(lr_B / lr_A) if lr_A else 1.0,
    }
    if "betas" in known:
        known["betas"] = list(known["betas"])
    return kind(**{"weight_decay": 0.0, **known})


def groups_of(
    optimizer: Optimizer, pair: LoraPair, adapter: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimizer's parameter groups of A and of B.

    Raises :class:`StudyError` if it does not update them.
    """
    group_of = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    try:
        return group_of[id(pair.A_RD)], group_of[id(pair.B_OR)]
    except KeyError:
        if pair.B_OR.requires_grad and not pair.A_RD.requires_grad:
            raise StudyError(
                f"A of adapter {adapter!r} is frozen, as in LoRA-FA, and the tables are of A and B "
                "in training: make A trainable to record"
            ) from None
        raise StudyError(
            f"the optimizer does not train all of adapter {adapter!r}: make it trainable "
            "(is_trainable=True) before you build the optimizer or the Trainer, and give one "
            "optimizer that holds A and B of every layer of this model"
        ) from None


def _optimizer_name(optimizer: Optimizer, options: Mapping[str, Any]) -> str:
    """Our name of a torch optimizer with these options; for one that we lack, its class's name."""
    name = type(optimizer).__name__.lower()
    shared = {
        row.built_from: ours for ours, row in OPTIMIZERS.items() if row.built_from[:1] == (name,)
    }
    fitting = [parts for parts in shared if all(options.get(option) for option in parts[1:])]
    return shared[max(fitting, key=len)] if fitting else name


def _model_name(model: nn.Module) -> str:
    """The name or path that the base was loaded from; for one built in memory, its class."""
    adapted: Any = peft_model(model)
    config: Any = getattr(adapted, "config", None)
    base: Any = getattr(adapted, "get_base_model", lambda: adapted)()  # PEFT's wrapper has one
    named = getattr(config, "_name_or_path", "")
    return named or str((getattr(config, "architectures", None) or [type(base).__name__])[0])


def _json(content: Any) -> str:
    """Canonical JSON: sets sorted; ``str`` of anything that JSON cannot hold."""

    def plain(value: Any) -> Any:
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)

    return json.dumps(content, sort_keys=True, default=plain)


def _sha256(content: Mapping[str, Any] | str) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()


KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
"""Axolotl's keys for fused LoRA kernels. It turns them on unless its YAML sets them."""


def check_model(model: nn.Module) -> nn.Module:
    """The PEFT model in ``model``, which hooks can watch.

    Raises :class:`StudyError` for a model without LoRA or with several processes, for one that is
    compiled, and for encoder-decoders.
    """
    processes = _processes()
    if processes > 1:
        raise StudyError(
            f"{processes} processes (DDP, FSDP, DeepSpeed) each see a part of every step: "
            "record a run in one process"
        )
    if isinstance(model, nn.DataParallel):
        raise StudyError("DataParallel gives each GPU a part of every step: record a run on one")
    if any(_is_compiled(module) for module in model.modules()):
        raise StudyError("a compiled model skips the hooks of layers: record without torch.compile")
    if any(type(weight).__name__ == "DTensor" for weight in model.parameters()):
        raise StudyError(
            "FSDP2 (fully_shard) splits every weight, also in one process: record without it"
        )
    found = peft_model(model)
    on = [name for name in ("lora_A", "lora_embedding_A") if _has_adapter(found, name)]
    if on == ["lora_embedding_A"]:
        raise StudyError(
            "the adapter is on embeddings only (lora_embedding_A), and only adapters on linear "
            "layers are measured: adapt linear layers to record"
        )
    if getattr(getattr(found, "config", None), "is_encoder_decoder", False):
        raise StudyError("encoder-decoder models cannot be probed: use a decoder")
    return found


def plain_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of torch inside the wrappers of accelerate and Lightning.

    Raises :class:`StudyError` if there is none, and for a gradient scaler.
    """
    while True:
        if getattr(optimizer, "scaler", None) is not None:
            raise StudyError(
                "fp16 scales the loss and every gradient (GradScaler): "
                "train in bf16 or float32 to record"
            )
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise StudyError(
            f"the optimizer is a {type(optimizer).__name__}: give an optimizer of torch, or "
            "accelerate's or Lightning's wrapper of one"
        )
    return optimizer


def check_hooks_ran(table: pd.DataFrame) -> None:
    """Raises :class:`StudyError` if a layer has a gradient but its hooks did not run.

    ``table``: the rows of one probed step.
    """
    by_site = {site: set(rows["layer"]) for site, rows in table.groupby("site", observed=True)}
    trained = by_site.get("A_grad", set())
    bypassed = sorted(trained - by_site.get("adapter_in", trained))
    if bypassed:
        off = ", ".join(KERNELS[:-1]) + f" and {KERNELS[-1]}"
        raise StudyError(
            f"the hooks of {len(bypassed)} trained layers did not run ({bypassed[0]}, ...): a "
            f"fused LoRA kernel bypasses them. In Axolotl set {off} to false; elsewhere turn the "
            'kernel off, or measure sites=["A", "B", "adapter_grad", "adapter_update"]'
        )


def _processes() -> int:
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def _has_adapter(model: nn.Module, factor: str) -> bool:
    return any(len(getattr(module, factor, ())) for module in model.modules())


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
