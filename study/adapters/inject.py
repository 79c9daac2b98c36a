"""Find a model's linears by name, put banks in their places, and take them out again."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from study.adapters.bank import FACTORED, AdapterSpec, LoraBank
from study.adapters.contraction import Contraction
from study.errors import StudyError

# By a component of the module path: every Hugging Face causal LM calls its two halves one of these.
HALVES = {
    "attention": re.compile(r"(^|\.)[^.]*(attn|attention)[^.]*\."),
    "mlp": re.compile(r"(^|\.)[^.]*(mlp|feed_forward|ffn)[^.]*\."),
}


def resolve_targets(linears: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """The linears (module paths) that ``targets`` names, in the model's order.

    ``targets`` is read as PEFT reads ``target_modules``: ``all-linear``; a list of names, each equal to a path or to
    its end; a string, a regex for whole paths. Beside them ``attention`` and ``mlp`` take one half of each block, and
    a single bare name works like a list of one. Raises :class:`StudyError` for a name that matches nothing.
    """
    kinds = sorted({path.rpartition(".")[2] for path in linears})
    choices = f"choose from all-linear, attention, mlp, a list out of {', '.join(kinds)}, or a regex of module paths"
    if targets == "all-linear":
        return list(linears)
    if isinstance(targets, str) and not re.fullmatch(r"\w+", targets):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise StudyError(
                f"adapter.targets={targets!r} is no regex ({error}): {choices}"
            ) from None
        found = {path for path in linears if pattern.fullmatch(path)}
        if not found:
            raise StudyError(f"adapter.targets={targets!r} matches no module: {choices}")
    else:
        found = set()
        for name in [targets] if isinstance(targets, str) else targets:
            half = HALVES.get(name)
            hits = {
                p
                for p in linears
                if (half.search(p) if half else p == name or p.endswith(f".{name}"))
            }
            if not hits:
                raise StudyError(f"unknown target module {name!r}: {choices}")
            found |= hits
        if not found:
            raise StudyError(f"adapter.targets is empty: {choices}")
    return [path for path in linears if path in found]


@contextmanager
def adapted(
    model: nn.Module,
    layers: Sequence[str],
    specs: Sequence[AdapterSpec],
    bank_type: type[LoraBank] = LoraBank,
    contraction: Contraction = FACTORED,
) -> Iterator[list[LoraBank]]:
    """``model`` with a bank in the place of each of ``layers``; the plain model again on leaving, also by an error.

    ``bank_type`` is :class:`LoraBank` or one of :mod:`study.adapters.infinite`; ``contraction`` says how each bank multiplies.
    """
    device = next(model.parameters()).device
    frozen = {layer: model.get_submodule(layer) for layer in layers}
    banks = [bank_type(base, layer, specs, contraction) for layer, base in frozen.items()]
    try:
        for bank in banks:
            bank.buckets.to(device)
            bank.make_pairs()
            _replace(model, bank.layer, bank)
        yield banks
    finally:
        for layer, base in frozen.items():
            _replace(model, layer, base)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
