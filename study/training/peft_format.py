"""Adapters on disk in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT's multiplier is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``.
``rank_pattern`` and ``alpha_pattern`` change r and lora_alpha by layer. This can express any gamma:
for a rule that PEFT lacks, ``lora_alpha = gamma * r``.

The tensors are ``base_model.model.<path>.lora_A.weight``, ``[r, D]``, and ``.lora_B.weight``,
``[O, r]``, also for a ``Conv1D`` base, whose own weight is ``[D, O]``.

Weights of experts are ``target_parameters``. PEFT keeps the adapters of all experts in one A,
``[E r, D]``, and one B, ``[O, r E]``. It wraps the module of experts once for each weight and names
the tensors by the wrapper. So their path is the module's, with ``.base_layer`` for each wrapper
around it.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from study.adapters.bank import LoraPair
from study.adapters.inject import path_matcher
from study.errors import StudyError, one_line, short
from study.reading import open_file, read_object
from study.vocabulary.peft_fields import BESIDE, refusal

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_EMBEDDING = re.compile(_KEY.pattern.replace("lora_", "lora_embedding_").removesuffix(r"\.weight"))
_AGAIN = "save the adapter again (model.save_pretrained)"
_LARGEST_CONFIG = 2 << 20
"""Bytes. Different ranks for each of 10,000 layers take about one MiB."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter read from disk: ``pairs`` by module path, each with its own rank and gamma; its
    configuration; and the keys of A and B in the file, by module path."""

    pairs: Mapping[str, LoraPair]
    config: Mapping[str, Any]
    keys: Mapping[str, Mapping[str, str]]

    @property
    def scaling(self) -> str:
        return "rslora" if self.config.get("use_rslora") else "lora"

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], base: str) -> None:
        """Raise unless ``shapes`` has all layers: ``(D, O)`` by path, ``(E, D, O)`` of experts."""
        other = f"the adapter is for another base than {base}"
        for layer, pair in self.pairs.items():
            own = (*pair.A_RD.shape[:-2], pair.A_RD.shape[-1], pair.B_OR.shape[-2])
            if not re.search(r"\.\d+\.", layer):
                raise StudyError(f"the adapter is on {layer}, outside the blocks: train without it")
            if layer not in shapes:
                named = short(self.config.get("base_model_name_or_path"))
                raise StudyError(f"{other}, which has no {layer}: its config names {named}")
            if own != shapes[layer]:
                raise StudyError(f"{other}: its {layer} is {own}, not {shapes[layer]}")


def write_adapter(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    *,
    alpha: float,
    exponent: float | None,
    dropout: float = 0.0,
    base: str | None = None,
    modules: Mapping[str, nn.Module],
) -> None:
    """Write ``pairs``, by module path, as a PEFT adapter into a new ``folder``.

    Not atomic: write it in :func:`study.store.replacing`. ``alpha``, ``exponent``: of the rule
    ``gamma = alpha * r ** -exponent``, None for another; layers with another gamma or rank go into
    ``alpha_pattern`` and ``rank_pattern``. ``base``: where PEFT loads the model from. ``modules``:
    all modules of the model by path.
    """
    linears = [layer for layer in pairs if layer in modules]
    experts = [layer for layer in pairs if layer not in modules]
    ranks = {layer: pair.A_RD.shape[-2] for layer, pair in pairs.items()}
    alphas: dict[str, float] = {}
    for layer, pair in pairs.items():
        divisor = math.sqrt(ranks[layer]) if exponent == 0.5 else ranks[layer]
        same = math.isclose(pair.gamma, alpha / divisor, rel_tol=1e-12)
        found = alpha if exponent in (0.5, 1.0) and same else pair.gamma * divisor
        # Many readers expect an int.
        alphas[layer] = int(found) if float(found).is_integer() else float(found)
    rank, first = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": first,
        "rank_pattern": {layer: r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {layer: a for layer, a in alphas.items() if a != first},
        "use_rslora": exponent == 0.5,
        **target_names(linears, experts, modules),
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": any(not hasattr(modules[layer], "in_features") for layer in linears),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    place_of = {layer: layer for layer in linears} | places(experts)
    tensors = {
        f"base_model.model.{place_of[layer]}.lora_{factor}.weight": (
            weight.detach().float().cpu().contiguous()
        )
        for layer, pair in pairs.items()
        for factor, weight in flat(pair).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_adapter(folder: Path, with_others: bool = False) -> PeftAdapter:
    """Read a PEFT LoRA adapter, float32 on the CPU. Respects ``rank_pattern``, ``alpha_pattern``
    and ``use_rslora``.

    Raises :class:`StudyError` for missing or damaged files, for values that contradict each other,
    and for adapters that are not LoRA on the unchanged base (:mod:`study.vocabulary.peft_fields`).
    ``with_others``: leave out trained weights next to those of LoRA, and read LoRA on embeddings.
    """
    config, named = _read_config(folder, BESIDE if with_others else ()), str(folder / WEIGHTS)
    open_file(folder / WEIGHTS, named, _fix(folder, WEIGHTS)).close()
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, MemoryError) as error:
        raise StudyError(f"{named} is damaged ({one_line(error)}): {_AGAIN}") from None
    keys = with_experts(_keys_by_layer(tensors, named, with_others), config, named)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    # PEFT matches a key with a path, or with all of it after a dot. The first that matches counts.
    own_rank, own_alpha = (
        path_matcher(patterns, f"{folder / CONFIG}: {key}", r"(.*\.)?")
        for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas))
    )
    pairs = {}
    for layer, of in keys.items():
        rank = ranks.get(own_rank(layer), config["r"])
        alpha = alphas.get(own_alpha(layer), config["lora_alpha"])
        gamma = float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
        A, B = (tensors[of[factor]] for factor in "AB")
        if not (A.is_floating_point() and B.is_floating_point()):
            types = " and ".join(sorted({str(A.dtype), str(B.dtype)}))
            raise StudyError(f"{named}: {layer} has weights of {types}: save them as float32")
        A, B = A.float(), B.float()
        experts = A.shape[0] // rank if A.ndim and is_wrapped(layer, of) else 1
        if A.ndim != 2 or B.ndim != 2 or not A.shape[0] == B.shape[1] == experts * rank > 0:
            found = f"{layer} has lora_A {list(A.shape)} and lora_B {list(B.shape)}"
            raise StudyError(f"{named}: {found}, but {CONFIG} says rank {rank}: {_AGAIN}")
        if not (A.isfinite().all() and B.isfinite().all()):
            raise StudyError(f"{named}: {layer} has non-finite weights: use another run")
        if is_wrapped(layer, of):  # the reverse of :func:`flat`
            A = A.unflatten(0, (experts, rank)).contiguous()
            B = B.unflatten(1, (rank, experts)).permute(2, 0, 1).contiguous()
        pairs[layer] = LoraPair(A, B, gamma)
    return PeftAdapter(pairs, config, keys)


def file_hash(folder: Path) -> str:
    digests = []
    for name in (CONFIG, WEIGHTS):
        with open_file(folder / name, str(folder / name), _fix(folder, name)) as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _fix(folder: Path, name: str) -> str:
    if name == WEIGHTS and (folder / "adapter_model.bin").exists():
        return "adapter_model.bin is a pickle, which is not safe to open: save it as safetensors"
    return f"give the folder with {CONFIG} and {WEIGHTS} that PEFT's save_pretrained wrote"


Rank = Annotated[int, Field(gt=0, lt=2**31)]
Alpha = Annotated[float, Field(gt=0, le=1e30)]


class _Fields(BaseModel, strict=True):
    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    base_model_name_or_path: str | None = None
    target_modules: str | list[str] | None = None
    target_parameters: list[str] | None = None


def _read_config(folder: Path, accepted: Sequence[str]) -> dict[str, Any]:
    named = str(folder / CONFIG)
    config = read_object(folder / CONFIG, named, _fix(folder, CONFIG), _LARGEST_CONFIG)
    try:
        _Fields.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        value = "" if first["type"] == "missing" else f"={short(first['input'])}"
        key = ".".join(map(str, first["loc"]))
        why = f"{named} has {key}{value}: {first['msg']}"
        raise StudyError(f"{why}: give an {CONFIG} of LoRA as PEFT writes it") from None
    checked = {key: value for key, value in config.items() if key not in accepted}
    if refused := refusal(checked, trained=True):
        raise StudyError(f"{named}: {refused}")
    return config


def _keys_by_layer(
    tensors: Iterable[str], named: str, with_others: bool
) -> dict[str, dict[str, str]]:
    keys: dict[str, dict[str, str]] = {}
    for key in tensors:
        found = _KEY.fullmatch(key) or (_EMBEDDING.fullmatch(key) if with_others else None)
        if found is None and (with_others or key.endswith(".base_layer.weight")):
            continue  # the latter is PEFT's copy of W0, of a head or an embedding
        if found is None:
            why = f"{named} has {short(key)}, which is not A or B of a linear layer"
            raise StudyError(f"{why}: only plain LoRA on linear layers can be read")
        keys.setdefault(found["layer"], {})[found["factor"]] = key
    if not keys:
        raise StudyError(f"{named} has no tensors: {_AGAIN}")
    for layer, of in keys.items():
        if missing := {"A", "B"} - of.keys():
            raise StudyError(f"{named} has no lora_{missing.pop()} for {layer}: {_AGAIN}")
    return keys


# Adapters on experts.


def flat(pair: LoraPair) -> Mapping[str, Tensor]:
    """The factors as PEFT stores them: A ``[E R, D]``, expert by expert; B ``[O, R E]``, whose
    columns go through the experts first. Those of a linear layer stay as they are.
    """
    A, B = pair.A_RD, pair.B_OR
    if A.ndim == 3:
        A, B = A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
    return {"A": A, "B": B}


RENAMED = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate")
"""Names of ``target_modules`` that PEFT (0.21) takes for experts in many families, also where they
are linear layers. It leaves ``target_parameters`` as they are."""


def target_names(
    linears: Sequence[str], experts: Sequence[str], modules: Mapping[str, nn.Module]
) -> dict[str, list[str]]:
    """``target_modules`` and ``target_parameters`` that select these layers in PEFT.

    ``modules``: all modules of the model by path. Next to experts, a linear layer of a name in
    :data:`RENAMED` is selected by its weight.
    """
    renamed = [layer for layer in linears if experts and layer.rpartition(".")[2] in RENAMED]
    others = [layer for layer in linears if layer not in renamed]
    return {
        "target_modules": shortest_names(others, modules),
        "target_parameters": shortest_names(
            [*experts, *(f"{layer}.weight" for layer in renamed)],
            (n for path, m in modules.items() for n, _ in m.named_parameters(path, recurse=False)),
            words=3,
        ),
    }


def shortest_names(layers: Iterable[str], paths: Iterable[str], words: int = 1) -> list[str]:
    """``layers`` as ``target_modules`` and ``adapter.targets`` name them: bare names if they select
    no other module of ``paths``; full paths otherwise. ``words``: of a name. The three of a weight
    leave out its block."""

    def end(path: str) -> str:
        return ".".join(path.split(".")[-words:])

    wanted = set(layers)
    names = sorted(set(map(end, wanted)))
    selected = {path for path in paths if end(path) in names}
    return names if selected == wanted else sorted(wanted)


def places(experts: Iterable[str]) -> dict[str, str]:
    """Where PEFT keeps the adapters of weights of experts, by path."""
    found: dict[str, str] = {}
    by_module: dict[str, list[str]] = defaultdict(list)
    for layer in experts:
        by_module[layer.rpartition(".")[0]].append(layer)
    for module, layers in by_module.items():
        outermost_first = sorted(layers, key=lambda layer: not layer.endswith(".down_proj"))
        for depth, layer in enumerate(outermost_first):
            found[layer] = module + ".base_layer" * depth
    return found


def with_experts(
    keys: Mapping[str, dict[str, str]], config: Mapping[str, Any], named: str
) -> dict[str, dict[str, str]]:
    """``keys`` with the paths of weights of experts in place of their wrappers'."""
    wanted = [
        name for name in config.get("target_parameters") or [] if not name.endswith(".weight")
    ]
    modules = {path.replace(".base_layer", "") for path in keys}
    experts = [
        f"{module}.{name.rpartition('.')[2]}"
        for module in modules
        for name in wanted
        if f".{module}".endswith(f".{name.rpartition('.')[0]}") and "." in name
    ]
    layers = {place: layer for layer, place in places(experts).items()}
    if bare := [name for name in wanted if "." not in name]:
        why = f"target_parameters has {short(bare[0])} without its module"
        raise StudyError(f"{named}: {why}: write {short(f'experts.{bare[0]}')}")
    return {layers.get(path, path): of for path, of in keys.items()}


def is_wrapped(layer: str, keys: Mapping[str, str]) -> bool:
    """Whether the keys of a layer's tensors name a wrapper, and not the layer itself."""
    return f".{layer}.lora_A." not in keys["A"]
