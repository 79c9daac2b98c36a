"""How PEFT stores adapters on the weights of experts: names, places and shapes.

Such weights are ``target_parameters``. PEFT keeps the adapters of all experts in one A,
``[E r, D]``, and one B, ``[O, r E]``. It wraps the module of experts once for each weight and names
the tensors by the wrapper. So their path is the module's, with ``.base_layer`` for each wrapper
around it.

Letters: ``E`` experts, ``O`` / ``D`` out / in features, ``R`` or ``r`` rank.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from study.adapters.bank import LoraPair
from study.errors import StudyError, short


def flat(pair: LoraPair) -> Mapping[str, Tensor]:
    """The factors as PEFT stores them: A ``[E R, D]``, expert by expert; B ``[O, R E]``, whose
    columns go through the experts first. Those of a linear layer stay as they are.
    """
    A, B = pair.A_RD, pair.B_OR
    if A.ndim == 3:
        A, B = A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
    return {"A": A, "B": B}


def unflat(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``A_ERD`` and ``B_EOR`` from :func:`flat`."""
    experts = len(A) // rank
    return (
        A.unflatten(0, (experts, rank)).contiguous(),
        B.unflatten(1, (rank, experts)).permute(2, 0, 1).contiguous(),
    )


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
        "target_parameters": _parameter_names(
            [*experts, *(f"{layer}.weight" for layer in renamed)], modules
        ),
    }


def shortest_names(layers: Iterable[str], paths: Iterable[str]) -> list[str]:
    """``layers`` as ``target_modules`` and ``adapter.targets`` name them.

    Bare names, which every reader understands, if they select no other module of ``paths``; full
    paths otherwise.
    """
    wanted = set(layers)
    names = sorted({layer.rpartition(".")[2] for layer in wanted})
    selected = {path for path in paths if path.rpartition(".")[2] in names}
    return names if selected == wanted else sorted(wanted)


def _parameter_names(weights: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Paths of weights without the block, if they then select no other weight."""
    names = sorted({".".join(weight.split(".")[-3:]) for weight in weights})
    selected = {
        f"{path}.{name}"
        for path, module in modules.items()
        for name, _ in module.named_parameters(recurse=False)
        if f"{path}.{name}".endswith(tuple(f".{chosen}" for chosen in names))
    }
    return names if selected == set(weights) else sorted(weights)


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
        raise StudyError(
            f"{named}: target_parameters has {short(bare[0])} without its module: only names such "
            f"as {short(f'experts.{bare[0]}')} can be read"
        )
    return {layers.get(path, path): of for path, of in keys.items()}


def is_wrapped(layer: str, keys: Mapping[str, str]) -> bool:
    """Whether the keys of a layer's tensors name a wrapper, and not the layer itself."""
    return f".{layer}.lora_A." not in keys["A"]
