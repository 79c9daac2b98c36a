"""Find a model's linears by name, replace them by banks, and restore them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from study.adapters.bank import FACTORED, AdapterSpec, LoraBank
from study.adapters.contraction import Contraction
from study.adapters.patterns import PathPatterns
from study.errors import StudyError, short

# The names of the two halves of a block in the causal LMs of Hugging Face.
HALVES = {
    "attention": re.compile(r"(^|\.)[^.]*(attn|attention)[^.]*\."),
    "mlp": re.compile(r"(^|\.)[^.]*(mlp|feed_forward|ffn)[^.]*\."),
}


def resolve_targets(linears: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """The linears (module paths) that ``targets`` names, in the model's order.

    ``targets`` is read as PEFT reads ``target_modules``: ``all-linear``; a list of names, each a
    path or the end of one; or a regex that matches whole paths. In addition, ``attention`` and
    ``mlp`` name one half of each block, and a single name works like a list of one. Raises
    :class:`StudyError` for a regex that is invalid or takes seconds
    (:mod:`study.adapters.patterns`), an empty list or a name that matches nothing.
    """
    kinds = sorted({path.rpartition(".")[2] for path in linears})
    choices = (
        f"choose from all-linear, {', '.join(HALVES)}, a list of {', '.join(kinds)}, "
        "or a regex that matches module paths"
    )
    if targets == "all-linear":
        return list(linears)
    if isinstance(targets, str) and not re.fullmatch(r"\w+", targets):
        try:
            pattern = PathPatterns([targets], "adapter.targets")
        except StudyError as error:
            raise StudyError(f"{error}: {choices}") from None
        found = {path for path in linears if pattern.match_whole(path)}
        if not found:
            raise StudyError(f"adapter.targets={short(targets)} matches no module: {choices}")
    else:
        found = set()
        for name in [targets] if isinstance(targets, str) else targets:
            half = HALVES.get(name) or re.compile(rf"(^|.*\.){re.escape(name)}$")
            hits = {path for path in linears if half.search(path)}
            if not hits:
                raise StudyError(f"unknown target module {short(name)}: {choices}")
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
    """Inside, every layer in ``layers`` is a bank. The plain model is restored on exit.

    ``bank_type``: :class:`LoraBank` or a subclass, such as
    :class:`~study.adapters.infinite.InfiniteRankBank`. ``contraction``: how the banks compute their
    products.
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
