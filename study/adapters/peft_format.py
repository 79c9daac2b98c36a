"""Adapters on disk in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT's multiplier is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``.
``rank_pattern`` and ``alpha_pattern`` change r and lora_alpha by layer. This can express any gamma:
for a rule that PEFT lacks, ``lora_alpha = gamma * r``.

The tensors are ``base_model.model.<path>.lora_A.weight``, ``[r, D]``, and ``.lora_B.weight``,
``[O, r]``, also for a ``Conv1D`` base, whose own weight is ``[D, O]``.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from study.adapters.bank import LoraPair
from study.errors import StudyError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_NEEDED = ("peft_type", "r", "lora_alpha")
_OTHER_FUNCTIONS = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
)
"""Settings that make a layer compute more than ``W0 x + gamma B A x``, or change other modules."""


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

    def check_fits(self, shapes: Mapping[str, tuple[int, int]], base: str) -> None:
        """Raise :class:`StudyError` if a layer is missing in ``shapes`` or has another size there.

        ``shapes``: ``(D, O)`` by module path. ``base``: the name of the base, for the message.
        """
        for layer, pair in self.pairs.items():
            own = (pair.A_RD.shape[1], pair.B_OR.shape[0])
            other = f"the adapter is for another base than {base}"
            if layer not in shapes:
                raise StudyError(
                    f"{other}, which has no {layer}: "
                    f"its config names {self.config.get('base_model_name_or_path')!r}"
                )
            if own != shapes[layer]:
                raise StudyError(
                    f"{other}: its {layer} is {own[0]} -> {own[1]}, "
                    f"not {shapes[layer][0]} -> {shapes[layer][1]}"
                )


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
    """Write ``pairs``, by module path, as a PEFT adapter into a new ``folder``, atomically.

    - ``alpha``, ``exponent``: of the rule gamma = alpha * r ** -exponent. Layers whose gamma or
      rank is not the first one's go into ``alpha_pattern`` and ``rank_pattern``;
    - ``base``: where PEFT loads the model from;
    - ``modules``: all modules of the model by path.
    """
    ranks = {layer: pair.A_RD.shape[0] for layer, pair in pairs.items()}
    rank = next(iter(ranks.values()))
    rslora = exponent == 0.5
    divisor = {layer: math.sqrt(r) if rslora else r for layer, r in ranks.items()}
    alphas = {
        layer: alpha
        if exponent in (0.5, 1.0)
        and math.isclose(pair.gamma, alpha / divisor[layer], rel_tol=1e-12)
        else pair.gamma * divisor[layer]
        for layer, pair in pairs.items()
    }
    lora_alpha = next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _whole(lora_alpha),
        "use_rslora": rslora,
        "rank_pattern": {layer: r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {layer: _whole(a) for layer, a in alphas.items() if a != lora_alpha},
        "target_modules": shortest_names(pairs, modules),
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": any(not hasattr(modules[layer], "in_features") for layer in pairs),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    work = folder.with_name(folder.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tensors = {
        f"base_model.model.{layer}.lora_{factor}.weight": weight.detach().float().cpu().contiguous()
        for layer, pair in pairs.items()
        for factor, weight in zip("AB", pair[:2], strict=True)
    }
    save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
    (work / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)


def shortest_names(layers: Iterable[str], paths: Iterable[str]) -> list[str]:
    """``layers`` as ``target_modules`` and ``adapter.targets`` name them.

    Bare names, which every reader understands, if they select no other module of ``paths``; full
    paths otherwise.
    """
    wanted = set(layers)
    names = sorted({layer.rpartition(".")[2] for layer in wanted})
    selected = {path for path in paths if path.rpartition(".")[2] in names}
    return names if selected == wanted else sorted(wanted)


def read_adapter(folder: Path) -> PeftAdapter:
    """Read a PEFT LoRA adapter, float32 on the CPU.

    Respects ``rank_pattern``, ``alpha_pattern`` and ``use_rslora``. Raises :class:`StudyError` if a
    file is missing or damaged, if the adapter is not LoRA or computes more than ``W0 x +
    gamma B A x`` (DoRA, biases, modules saved whole), or if shapes contradict each other or the
    configuration.
    """
    config, tensors = _read_config(folder), _read_tensors(folder)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise StudyError(
                f"{folder / WEIGHTS} has {key}, which is not A or B of a linear layer: "
                "only plain LoRA can be read"
            )
        factors.setdefault(found["layer"], {})[found["factor"]] = tensor.float()
    if not factors:
        raise StudyError(
            f"{folder / WEIGHTS} has no tensors: save the adapter again (model.save_pretrained)"
        )
    return PeftAdapter(
        {layer: _pair(folder, layer, of, config) for layer, of in factors.items()}, config
    )


def file_hash(folder: Path) -> str:
    """The sha256 of both files of an adapter."""
    digests = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)
    ]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(
            f"{folder} has no {CONFIG}: give the folder that PEFT's save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} can't be read ({error}): save the adapter again") from None
    if not isinstance(config, dict) or (missing := [key for key in _NEEDED if key not in config]):
        lacks = ", ".join(missing) if isinstance(config, dict) else "everything"
        raise StudyError(f"{path} lacks {lacks}: give an adapter_config.json as PEFT writes it")
    if config["peft_type"] != "LORA":
        raise StudyError(
            f"{path}: unknown adapter type {config['peft_type']!r}: only LORA can be read"
        )
    if other := [key for key in _OTHER_FUNCTIONS if config.get(key)]:
        raise StudyError(
            f"{path} has {other[0]}={config[other[0]]}: "
            "only adapters that compute W0 x + gamma B A x can be read"
        )
    numbers = {"r": config["r"], "lora_alpha": config["lora_alpha"]}
    for key in ("rank_pattern", "alpha_pattern"):
        numbers |= {f"{key}[{name}]": value for name, value in (config.get(key) or {}).items()}
    for key, value in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise StudyError(f"{path} has {key}={value!r}: it must be a number above 0")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        has_pickle = (folder / "adapter_model.bin").exists()
        pickled = (
            " (adapter_model.bin is a pickle, which is not safe to open)" if has_pickle else ""
        )
        raise StudyError(f"{folder} has no {WEIGHTS}{pickled}: save the adapter as safetensors")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StudyError(
            f"{path} is damaged ({' '.join(str(error).split())}): save the adapter again"
        ) from None


def _pair(
    folder: Path, layer: str, factors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LoraPair:
    """One layer's factors and gamma. The shapes must match each other and the configured rank."""
    if missing := {"A", "B"} - factors.keys():
        raise StudyError(
            f"{folder / WEIGHTS} has no lora_{missing.pop()} for {layer}: save the adapter again"
        )
    A, B = factors["A"], factors["B"]
    rank = _by_layer(config.get("rank_pattern"), layer, config["r"])
    if A.ndim != 2 or B.ndim != 2 or not A.shape[0] == B.shape[1] == rank:
        raise StudyError(
            f"{folder / WEIGHTS}: {layer} has lora_A {list(A.shape)} and lora_B {list(B.shape)}, "
            f"but {CONFIG} says rank {rank}: save the adapter again "
            "(A is [rank, in], B is [out, rank])"
        )
    if not (A.isfinite().all() and B.isfinite().all()):
        raise StudyError(
            f"{folder / WEIGHTS}: {layer} has non-finite weights: use a run that did not diverge"
        )
    alpha = _by_layer(config.get("alpha_pattern"), layer, config["lora_alpha"])
    return LoraPair(A, B, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_layer(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """PEFT's lookup: the value of the first key that matches, as a regex, the end of the path."""
    return next(
        (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", layer)),
        default,
    )


def _whole(alpha: float) -> float | int:
    """An int if possible: many readers expect an int ``lora_alpha``."""
    return int(alpha) if float(alpha).is_integer() else float(alpha)
