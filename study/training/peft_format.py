"""Adapters on disk in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT's multiplier is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``.
``rank_pattern`` and ``alpha_pattern`` change r and lora_alpha by layer. This can express any gamma:
for a rule that PEFT lacks, ``lora_alpha = gamma * r``.

The tensors are ``base_model.model.<path>.lora_A.weight``, ``[r, D]``, and ``.lora_B.weight``,
``[O, r]``, also for a ``Conv1D`` base, whose own weight is ``[D, O]``.
Adapters on experts are stored otherwise (:mod:`study.adapters.peft_experts`).
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from study.adapters.bank import LoraPair
from study.adapters.patterns import PathPatterns
from study.adapters.peft_experts import (
    flat,
    is_wrapped,
    places,
    target_names,
    unflat,
    with_experts,
)
from study.errors import StudyError, short
from study.reading import check_memory, free_memory, open_file, read_object
from study.vocabulary.peft_fields import refusal

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_NEEDED = ("peft_type", "r", "lora_alpha")
_AGAIN = "save the adapter again (model.save_pretrained)"
_LARGEST_CONFIG = 2 << 20
"""Bytes. A rank of its own for each of 10,000 layers takes about one MiB."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter read from disk: ``pairs`` by module path, and its configuration.

    Each layer has its own rank and gamma.
    """

    pairs: Mapping[str, LoraPair]
    config: Mapping[str, Any]

    @property
    def scaling(self) -> str:
        """The scaling rule of ``lora_alpha``: ``rslora`` or ``lora``."""
        return "rslora" if self.config.get("use_rslora") else "lora"

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], base: str) -> None:
        """Raise :class:`StudyError` if a layer is missing in ``shapes`` or has another size there.

        ``shapes``: ``(D, O)`` by module path, ``(E, D, O)`` of experts. ``base``: the name of the
        base, for the message.
        """
        for layer, pair in self.pairs.items():
            own = (*pair.A_RD.shape[:-2], pair.A_RD.shape[-1], pair.B_OR.shape[-2])
            other = f"the adapter is for another base than {base}"
            if not re.search(r"\.\d+\.", layer):
                raise StudyError(
                    f"the adapter is also on {layer}, outside the blocks: only layers of the "
                    f"blocks can be adapted here, so train it without {layer}"
                )
            if layer not in shapes:
                raise StudyError(
                    f"{other}, which has no {layer}: "
                    f"its config names {short(self.config.get('base_model_name_or_path'))}"
                )
            if own != shapes[layer]:
                raise StudyError(
                    f"{other}: its {layer} is {_words(own)}, not {_words(shapes[layer])}"
                )


def _words(shape: Sequence[int]) -> str:
    *experts, d, o = shape
    return f"{d} -> {o}" + "".join(f" in {count} experts" for count in experts)


def write_adapter(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    *,
    alpha: float,
    exponent: float,
    dropout: float = 0.0,
    base: str | None = None,
    modules: Mapping[str, torch.nn.Module],
) -> None:
    """Write ``pairs``, by module path, as a PEFT adapter into a new ``folder``.

    A kill can leave a part of it: write it in :func:`study.store.replacing`.

    - ``alpha``, ``exponent``: of the rule gamma = alpha * r ** -exponent. Layers whose gamma or
      rank is not the first one's go into ``alpha_pattern`` and ``rank_pattern``;
    - ``base``: where PEFT loads the model from;
    - ``modules``: all modules of the model by path.
    """
    linears = [layer for layer in pairs if layer in modules]
    experts = [layer for layer in pairs if layer not in modules]
    ranks = {layer: pair.A_RD.shape[-2] for layer, pair in pairs.items()}
    rslora = exponent == 0.5
    divisor = {layer: math.sqrt(r) if rslora else r for layer, r in ranks.items()}
    alphas = {
        layer: alpha
        if exponent in (0.5, 1.0)
        and math.isclose(pair.gamma, alpha / divisor[layer], rel_tol=1e-12)
        else pair.gamma * divisor[layer]
        for layer, pair in pairs.items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **_patterns(ranks, alphas),
        "use_rslora": rslora,
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


def _patterns(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The fields for rank and alpha: those of the first layer, and where others differ."""
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {layer: r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {layer: _whole(a) for layer, a in alphas.items() if a != alpha},
    }


def read_adapter(folder: Path) -> PeftAdapter:
    """Read a PEFT LoRA adapter, float32 on the CPU.

    Respects ``rank_pattern``, ``alpha_pattern`` and ``use_rslora``. Raises :class:`StudyError` if a
    file is missing or damaged, if the adapter is not LoRA on the unchanged base
    (:mod:`study.vocabulary.peft_fields`), if a value has the wrong type, if shapes contradict each
    other or the configuration, and if the weights don't fit in memory.
    """
    config, named = _read_config(folder), str(folder / WEIGHTS)
    rules = _Rules(config, str(folder / CONFIG))
    open_file(folder / WEIGHTS, named, _fix(folder, WEIGHTS)).close()
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            keys = with_experts(_keys_by_layer(file, named), config, named)
            ranks = {layer: rules.rank(layer) for layer in keys}
            _check_shapes(file, keys, ranks, named)
            pairs = {
                layer: _pair(file, layer, keys[layer], rank, rules.gamma(layer, rank), named)
                for layer, rank in ranks.items()
            }
    except (SafetensorError, OSError, MemoryError) as error:
        cause = " ".join(str(error).split()) or "no memory"
        raise StudyError(f"{named} is damaged ({cause[:160]}): {_AGAIN}") from None
    return PeftAdapter(pairs, config)


def file_hash(folder: Path) -> str:
    """The sha256 of both files of an adapter. Raises :class:`StudyError` if one can't be read."""
    digests = []
    for name in (CONFIG, WEIGHTS):
        with open_file(folder / name, str(folder / name), _fix(folder, name)) as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _fix(folder: Path, name: str) -> str:
    """What to do if a file of the adapter can't be used."""
    if name == WEIGHTS and os.path.exists(folder / "adapter_model.bin"):
        return "adapter_model.bin is a pickle, which is not safe to open: save it as safetensors"
    return f"give the folder with {CONFIG} and {WEIGHTS} that PEFT's save_pretrained wrote"


def _read_config(folder: Path) -> dict[str, Any]:
    named = str(folder / CONFIG)
    config = read_object(folder / CONFIG, named, _fix(folder, CONFIG), _LARGEST_CONFIG)
    if missing := [key for key in _NEEDED if key not in config]:
        raise StudyError(
            f"{named} lacks {', '.join(missing)}: give an adapter_config.json as PEFT writes it"
        )
    if config["peft_type"] != "LORA":
        raise StudyError(
            f"{named}: unknown adapter type {short(config['peft_type'])}: only LORA can be read"
        )
    for key, (fits, words) in _VALUES.items():
        if not fits(config.get(key)):
            raise StudyError(f"{named} has {key}={short(config.get(key))}: it must be {words}")
    for pattern, (fits, words) in (("rank_pattern", _RANK), ("alpha_pattern", _ALPHA)):
        for name, value in (config.get(pattern) or {}).items():
            if not fits(value):
                raise StudyError(
                    f"{named} has {pattern}[{name}]={short(value)}: it must be {words}"
                )
    if refused := refusal(config, trained=True):
        raise StudyError(f"{named}: {refused}")
    return config


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_RANK = (lambda v: type(v) is int and 0 < v < 2**31, "a whole number from 1")
_ALPHA = (lambda v: type(v) in (int, float) and 0 < v <= 1e30, "a number above 0")
_OBJECT = (lambda v: v is None or isinstance(v, dict), "an object with a number for each pattern")
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "rank_pattern": _OBJECT,
    "alpha_pattern": _OBJECT,
    "use_rslora": (lambda v: v is None or v is True or v is False, "true or false, unquoted"),
    "lora_dropout": (
        lambda v: v is None or (type(v) in (int, float) and 0 <= v < 1),
        "a number from 0 to below 1",
    ),
    "base_model_name_or_path": (lambda v: v is None or _is_text(v), "a name in quotes"),
    "target_modules": (
        lambda v: v is None or _is_text(v) or (isinstance(v, list) and all(map(_is_text, v))),
        "a name, a regex or a list of names",
    ),
    "target_parameters": (
        lambda v: v is None or (isinstance(v, list) and all(map(_is_text, v))),
        "a list of names",
    ),
}
"""A test of the value of each field that is read, and the value in words. JSON has true for 1."""


class _Rules:
    """The rank and gamma that a configuration gives each layer. ``named``: its file, in errors."""

    def __init__(self, config: Mapping[str, Any], named: str) -> None:
        self._config = config
        self._patterns = {
            key: PathPatterns(config.get(key) or (), f"{named}: {key}")
            for key in ("rank_pattern", "alpha_pattern")
        }

    def rank(self, layer: str) -> int:
        return int(self._value("rank_pattern", layer, "r"))

    def gamma(self, layer: str, rank: int) -> float:
        alpha = self._value("alpha_pattern", layer, "lora_alpha")
        return float(alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank))

    def _value(self, pattern: str, layer: str, default: str) -> Any:
        found = self._patterns[pattern].first_at_end(layer)
        return self._config[default] if found is None else self._config[pattern][found]


def _keys_by_layer(file: Any, named: str) -> dict[str, dict[str, str]]:
    """The keys of A and B in an open safetensors file, by layer."""
    keys: dict[str, dict[str, str]] = {}
    for key in file.keys():  # noqa: SIM118, safe_open is no mapping
        found = _KEY.fullmatch(key)
        if key.endswith(".base_layer.weight"):  # of a head or an embedding: PEFT's copy of W0
            continue
        if ".lora_embedding_" in key:
            raise StudyError(
                f"{named} has an adapter on an embedding ({short(key)}): only adapters on linear "
                "layers can be read"
            )
        if found is None:
            raise StudyError(
                f"{named} has {key}, which is not A or B of a linear layer: "
                "only plain LoRA can be read"
            )
        keys.setdefault(found["layer"], {})[found["factor"]] = key
    if not keys:
        raise StudyError(f"{named} has no tensors: {_AGAIN}")
    for layer, of in keys.items():
        if missing := {"A", "B"} - of.keys():
            raise StudyError(f"{named} has no lora_{missing.pop()} for {layer}: {_AGAIN}")
    return keys


def _check_shapes(
    file: Any, keys: Mapping[str, Mapping[str, str]], ranks: Mapping[str, int], named: str
) -> None:
    """Shapes must match each other and the configured ranks, and fit in memory as float32."""
    numbers = 0
    for layer, of in keys.items():
        slices = {factor: file.get_slice(key) for factor, key in of.items()}
        A, B = (slices[factor].get_shape() for factor in "AB")
        experts = A[0] // ranks[layer] if is_wrapped(layer, keys[layer]) else 1
        if len(A) != 2 or len(B) != 2 or not A[0] == B[1] == experts * ranks[layer] > 0:
            raise StudyError(
                f"{named}: {layer} has lora_A {A} and lora_B {B}, "
                f"but {CONFIG} says rank {ranks[layer]}: {_AGAIN} "
                "(A is [rank, in], B is [out, rank])"
            )
        for factor, of_factor in slices.items():
            if not of_factor.get_dtype().startswith(("F", "BF")):
                raise StudyError(
                    f"{named}: {layer} has lora_{factor} of {of_factor.get_dtype()}: "
                    "save the adapter in float32, bf16 or float16"
                )
        numbers += math.prod(A) + math.prod(B)
    check_memory(4 * numbers, free_memory(), named, "use a machine with more, or a smaller adapter")


def _pair(
    file: Any, layer: str, keys: Mapping[str, str], rank: int, gamma: float, named: str
) -> LoraPair:
    A, B = (file.get_tensor(keys[factor]).float() for factor in "AB")
    if not (A.isfinite().all() and B.isfinite().all()):
        raise StudyError(f"{named}: {layer} has non-finite weights: use a run that did not diverge")
    if is_wrapped(layer, keys):
        A, B = unflat(A, B, rank)
    return LoraPair(A, B, gamma)


def _whole(alpha: float) -> float | int:
    """An int if possible: many readers expect an int ``lora_alpha``."""
    return int(alpha) if float(alpha).is_integer() else float(alpha)
