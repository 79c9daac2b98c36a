"""A run of another tool as a cell: its checks, configuration, identity and record."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from study.adapters.bank import LoraPair, own
from study.config import (
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
from study.store import CellWriter, claim, load_records, now, provenance
from study.training.devices import describe_device
from study.training.sharding import Processes
from study.vocabulary.inits import IMPORTED
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import RHO, SITES, STATS, USUAL

RECORDED = (*USUAL, RHO)
"""What ``stats="all"`` measures in a user's loop. The motion of A is cheap where A is at hand."""


@dataclass(frozen=True)
class Loop:
    """Facts about a loop other than its model and optimizer. ``note``: sentences for the report.
    ``varies``: other differences between its cells, by name."""

    results: Path
    seed: int
    precision: str
    data: DataConfig
    train: TrainConfig
    trained_by: str
    note: str = ""
    varies: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    name: str
    peft: Any
    init: str
    probe: NormProbe

    @property
    def pairs(self) -> list[LoraPair]:
        return [layer.pairs()[0] for layer in self.probe.layers]

    @property
    def frozen(self) -> str:
        """The factor that is frozen in any layer, as A in LoRA-FA; empty if both are trained."""
        factors = zip("AB", zip(*self.pairs, strict=True), strict=False)
        return "".join(n for n, each in factors if not all(w.requires_grad for w in each))


def open_cell(
    loop: Loop,
    adapter: Adapter,
    model: nn.Module,
    optimizer: Optimizer,
    probes: ProbesConfig,
    first: int,
    content: int,
) -> tuple[CellWriter, bool]:
    """An open writer for the cell of one adapter of ``model``; whether it resumes a cell.

    The same settings and ``content`` of the first step have the same id and replace the earlier
    cell. A run that resumes at step ``first`` goes on with the newest of its settings.
    """
    config = _config(loop, adapter, model, optimizer, probes)
    varies = {**loop.varies} | ({"frozen": adapter.frozen} if adapter.frozen else {})
    base: Any = getattr(peft_model(model), "config", {})
    described = base.to_dict() if hasattr(base, "to_dict") else dict(base)
    made_from = {"model": described, "peft": adapter.peft.to_dict(), "varies": varies}
    sources = Sources(_sha256(made_from), "", _sha256(loop.data.name))
    settings = identity(config, sources)
    others = load_records(loop.results)
    same = [each for each in others if each.get("settings") == settings]
    sources = replace(sources, data=_sha256([loop.data.name, content]))
    if first and same:
        sources = Sources(**max(same, key=lambda each: each["started"])["sources"])
    cell, note = identity(config, sources), loop.note
    folder, device = loop.results / "cells" / cell, adapter.pairs[0].A_RD.device
    first = first if folder.exists() else 0
    if (claimed := claim(folder)) is None:
        why = f"another recording of this run is open, cell {cell}"
        raise StudyError(f"{why}: give seed= or another name=value")
    share = share_of_rule(adapter)
    ids = [] if first else [each["cell_id"] for each in same]
    for sentence in _told(cell, ids, others, config.adapter.scaling, share):
        warnings.warn(sentence, stacklevel=6)
        note = f"{note} {sentence}".strip()
    record = {
        "cell_id": cell,
        "share_of_rule": share,
        "settings": settings,
        "study": config.name,
        "model": config.model.path,
        "trained_by": loop.trained_by,
        "data": loop.data.name,
        "gamma": adapter.pairs[0].gamma,
        "sources": asdict(sources),
        "config": asdict(config) | {f"run_{name}": value for name, value in varies.items()},
        "peft": {"adapter": adapter.name, "variants": adapter.probe.variants}
        | json.loads(_json(adapter.peft.to_dict())),
        "training_note": note,
        "processes": Processes(device).size,
        "started": now(),
        **provenance(),
        **describe_device(device),
    }
    text = yaml.safe_dump(literal(record["config"]), sort_keys=False, allow_unicode=True)
    return CellWriter(claimed, text, record, first, gaps=True), first > 0


@torch.no_grad()
def share_of_rule(adapter: Adapter) -> float | None:
    """By what the first layer multiplies ``B A x``, over its rule, measured from outputs with two
    values of B. None on experts, under FSDP2 and for variants such as DoRA."""
    module: Any = adapter.probe.layers[0].module
    (A_RD, B_OR, _), peft = adapter.pairs[0], adapter.peft
    is_divided, is_linear = hasattr(A_RD, "to_local"), type(module).__name__ != "ParamWrapper"
    if adapter.probe.variants or is_divided or not is_linear:
        return None
    before, was_training = B_OR.clone(), module.training
    W = getattr(module.base_layer, "weight", A_RD)  # a quantised layer may have none
    x_ND = torch.eye(A_RD.shape[1])[:64].to(W if W.is_floating_point() else A_RD)
    module.eval()
    outputs = []
    for value in (0.0, 1.0):
        B_OR.fill_(value)
        outputs.append(module.forward(x_ND).double())
    module.train(was_training)
    B_OR.copy_(before)
    h_N1 = (x_ND.double() @ A_RD.double().T).sum(1, keepdim=True)
    factor = ((outputs[1] - outputs[0]) * h_N1).sum() / h_N1.square().sum() / len(B_OR)
    rank = A_RD.shape[0]
    return float(factor) / (alpha_of(adapter) / rank ** (0.5 if peft.use_rslora else 1.0))


def alpha_of(adapter: Adapter) -> float:
    """The alpha of all layers, which ``alpha_pattern`` may set; of the configuration if they
    differ."""
    peft, power = adapter.peft, 0.5 if adapter.peft.use_rslora else 1.0
    usual = float(peft.lora_alpha)
    alphas = [pair.gamma * pair.A_RD.shape[0] ** power for pair in adapter.pairs]
    if not peft.alpha_pattern or not np.allclose(alphas, alphas[0]):
        return usual
    return float(f"{alphas[0]:.10g}")


def _told(
    cell: str, same: list[str], others: list[dict[str, Any]], rule: str, share: float | None
) -> Iterator[str]:
    """Lines about cells of the ``same`` settings, and of one rule with two factors."""
    for each in others:
        theirs, is_alike = each.get("share_of_rule"), each["config"]["adapter"]["scaling"] == rule
        if is_alike and theirs and share and abs(theirs / share - 1) > 0.05:  # bf16 rounds outputs
            yield (
                f"{rule} is another factor in cell {each['cell_id']}: its adapter's outputs are "
                f"{theirs:.3g} times those of the rule, and {share:.3g} times here."
            )
            break
    if same:
        how = f"{cell} goes to aside/ if it has ended" if cell in same else "on other data"
        yield (
            f"This study has the same settings in cell {', '.join(same)}, {how}: give seed=, data= "
            "or another name=value to tell runs apart."
        )


def _config(
    loop: Loop, adapter: Adapter, model: nn.Module, optimizer: Optimizer, probes: ProbesConfig
) -> CellConfig:
    return CellConfig(
        name=loop.results.name,
        results_dir=str(loop.results.parent),
        plots_dir="plots",
        device=adapter.pairs[0].A_RD.device.type,
        seed=loop.seed,
        precision=loop.precision,
        model=ModelConfig("hf", _model_name(model)),
        data=loop.data,
        adapter=_adapter_config(adapter),
        optimizer=_optimizer_config(optimizer, adapter),
        train=loop.train,
        probes=probes,
    )


def read_adapters(model: nn.Module, probes: ProbesConfig, resumed: bool = False) -> list[Adapter]:
    """The active adapters of ``model``, with their probes. Warns of layers that are not LoRA."""
    stats = chosen("stats", probes.stats, STATS, RECORDED)
    if resumed:  # the first A is not known
        stats = tuple(stat for stat in stats if stat != RHO)
    options: dict[str, Any] = {
        "sites": chosen("sites", probes.sites, SITES),
        "stats": stats,
        "tokens": probes.tokens,
    }
    names = active_adapters(model)
    if not names:
        NormProbe(model)  # raises, and says what is missing
    configs: Any = peft_model(model).peft_config
    found = []
    for name in names:
        probe = NormProbe(model, adapter=name, **options)
        if variants := probe.variants:
            layer, variant = next(iter(variants.items()))
            without = "they have no adapter_out, adapter_in_grad and delta_w"
            said = f"adapter {name!r}: {len(variants)} layers ({layer}, ...) are {variant}"
            warnings.warn(f"{said}: {without}", stacklevel=4)
        # If B is not 0, the adapter was trained before, and theory does not predict its first
        # steps. After a checkpoint of the same run is loaded, B says nothing.
        trained = any(bool(own(layer.pairs()[0].B_OR).any()) for layer in probe.layers)
        how = configs[name].init_lora_weights
        init = "kaiming" if how is True else f"peft_{how}"
        init = IMPORTED if trained and not resumed else init
        found.append(Adapter(name, configs[name], init, probe))
    return found


def peft_model(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(getattr(module, "peft_config", None), dict):
            return module
    why = f"{type(model).__name__} has no LoRA layer of PEFT"
    raise StudyError(f"{why}: give the model that get_peft_model returned")


def _adapter_config(adapter: Adapter) -> AdapterConfig:
    peft, ranks = adapter.peft, sorted({pair.A_RD.shape[0] for pair in adapter.pairs})
    if len(ranks) > 1:
        named = ", ".join(map(str, ranks))
        said = f"layers differ in rank ({named}): the cell has r={peft.r}"
        warnings.warn(f"{said}; to fit exponents, run without rank_pattern", stacklevel=2)
    if len({pair.gamma * pair.A_RD.shape[0] for pair in adapter.pairs}) > len(ranks):
        said = f"layers differ in alpha: the cell has lora_alpha={peft.lora_alpha:g}"
        warnings.warn(f"{said}; to fit exponents, run without alpha_pattern", stacklevel=2)
    targets = peft.target_modules
    is_once = type(adapter.probe.layers[0].module).__name__ == "LinearRoundedOnce"
    return AdapterConfig(
        rank=ranks[0] if len(ranks) == 1 else int(peft.r),
        alpha=alpha_of(adapter),
        scaling="rslora" if peft.use_rslora else "lora",
        targets=targets if isinstance(targets, str) else sorted(targets or ()),
        init=adapter.init,
        dropout=float(peft.lora_dropout),
        contraction="concatenated" if is_once else "factored",  # two products, rounded in bf16
    )


def _optimizer_config(optimizer: Optimizer, adapter: Adapter) -> OptimizerConfig:
    """The adapter's optimizer. One that the toolkit does not have is named after its class, and
    after its package too if the toolkit has one of this name with other options."""
    of_A, of_B = groups_of(optimizer, adapter.pairs[0], adapter.name)
    name = type(optimizer).__name__.lower()
    rows = {row.built_from: ours for ours, row in OPTIMIZERS.items()}
    fitting = [r for r in rows if r[:1] == (name,) and all(of_A.get(option) for option in r[1:])]
    name = rows[max(fitting, key=len)] if fitting else name
    if name in OPTIMIZERS and not OPTIMIZERS[name].options.keys() <= of_A.keys():
        name = f"{type(optimizer).__module__.partition('.')[0]}.{name}"
    kind = optimizer_config(name)
    known = {f.name: number(of_A[f.name]) for f in fields(kind) if f.name in of_A}
    for key, option in OPTIMIZERS[name].options.items() if name in OPTIMIZERS else ():
        if option.choices and known[key] is None:
            known[key] = option.choices[0]
    # Without warm-up; OneCycleLR begins at a share of max_lr.
    lr_A, lr_B = (number(g.get("max_lr", g.get("initial_lr", g["lr"]))) for g in (of_A, of_B))
    known |= {"name": name, "lr": float(lr_A), "loraplus_lr_ratio": lr_B / lr_A if lr_A else 1.0}
    if "betas" in known:
        known["betas"] = [number(beta) for beta in known["betas"]]
    return kind(**{"weight_decay": 0.0, **known})


def number(option: Any) -> Any:
    """An option of an optimizer, or a number of numpy's, as Python's. One in a float32 tensor is
    read as it was written: 0.001."""
    if isinstance(option, Tensor):
        return float(f"{float(option):.7g}")
    return option.item() if isinstance(option, np.generic) else option


def groups_of(
    optimizer: Optimizer, pair: LoraPair, adapter: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    group_of = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    groups = [group_of.get(id(weight)) for weight in pair[:2] if weight.requires_grad]
    if not groups or None in groups:
        raise StudyError(
            f"the optimizer does not train all of adapter {adapter!r}: make it trainable "
            "(is_trainable=True) and divide it (fully_shard) before you build the optimizer, and "
            "give one optimizer that holds A and B of every layer"
        )
    return groups[0], groups[-1]  # type: ignore[return-value]


def _model_name(model: nn.Module) -> str:
    """The name or path that the base was loaded from; for one built in memory, its class."""
    adapted: Any = peft_model(model)
    config: Any = getattr(adapted, "config", None)
    base: Any = getattr(adapted, "get_base_model", lambda: adapted)()  # PEFT's wrapper has one
    named = getattr(config, "_name_or_path", "")
    return named or str((getattr(config, "architectures", None) or [type(base).__name__])[0])


def _json(content: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)

    return json.dumps(content, sort_keys=True, default=plain)


def _sha256(content: Any) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()


INSTEAD = "use DDP or FSDP2 (fully_shard, or fsdp_version: 2 in accelerate)"
WRAPPERS = ("accelerate", "lightning", "pytorch_lightning")
"""The libraries whose wrappers of an optimizer change no weights."""
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
"""Axolotl's keys for fused LoRA kernels. It turns them on unless its YAML sets them."""


def check_model(model: nn.Module) -> nn.Module:
    found, modules = peft_model(model), list(model.modules())
    on_linear, on_embedding = (
        any(len(getattr(module, name, ())) for module in modules)
        for name in ("lora_A", "lora_embedding_A")
    )
    is_compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules)
    kinds = {type(module).__name__ for module in modules}
    is_encoder = getattr(getattr(found, "config", None), "is_encoder_decoder", False)
    for is_wrong, why in (
        ("FullyShardedDataParallel" in kinds, f"FSDP1 flattens weights: {INSTEAD}"),
        ("DeepSpeedEngine" in kinds, f"DeepSpeed hides gradients: {INSTEAD}"),
        (isinstance(model, nn.DataParallel), "each GPU of DataParallel sees a part: use one GPU"),
        (is_compiled, "a compiled model skips the hooks of layers: record without torch.compile"),
        (
            on_embedding and not on_linear,
            "the adapter is on embeddings only, and linear layers are measured: adapt some",
        ),
        (is_encoder, "encoder-decoder models cannot be probed: use a decoder"),
    ):
        if is_wrong:
            raise StudyError(why)
    return found


def plain_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of torch inside the wrappers of accelerate and Lightning."""
    while type(optimizer).__module__.partition(".")[0] in WRAPPERS:
        optimizer = getattr(optimizer, "optimizer", None)
    name, inner = type(optimizer).__name__, getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        why = f"the optimizer is a {name} and may change weights after its step"
        raise StudyError(f"{why}: give the {type(inner).__name__} inside")
    if not hasattr(optimizer, "_optimizer_state_dict_pre_hooks"):
        raise StudyError(f"the optimizer is a {name}: give torch's, accelerate's or Lightning's")
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise StudyError(f"{name} without lr chooses its own rate: give lr= (relative_step=False)")
    return optimizer


def bypassed(table: pd.DataFrame) -> str | None:
    by_site = {site: set(rows["layer"]) for site, rows in table.groupby("site", observed=True)}
    trained = by_site.get("A_grad", set()) | by_site.get("B_grad", set())
    layers = sorted(trained - by_site.get("adapter_in", trained))
    if not layers:
        return None
    return (
        f"the hooks of {len(layers)} trained layers did not run ({layers[0]}, ...): a fused LoRA "
        f"kernel bypasses them. In Axolotl set {', '.join(KERNELS)} to false; elsewhere turn the "
        'kernel off, or measure sites=["A", "B", "adapter_grad", "adapter_update"]'
    )
