"""Find a model's layers by name, put adapters on them, and restore them."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import regex
from torch import nn

from study.adapters.bank import FACTORED, AdapterSpec, LoraBank
from study.adapters.contraction import Contraction
from study.adapters.experts import AdaptedExperts, ExpertBank
from study.errors import StudyError, short

# The names of the two halves of a block in the causal LMs of Hugging Face.
HALVES = {
    "attention": re.compile(r"(^|\.)[^.]*(attn|attention)[^.]*\."),
    "mlp": re.compile(r"(^|\.)[^.]*(mlp|feed_forward|ffn)[^.]*\."),
}


MATCHING_SECONDS = 1.0
"""The most that a regex may take on one path."""


def path_matcher(
    patterns: Iterable[str], named: str, prefix: str = ""
) -> Callable[[str], str | None]:
    """A function that gives the first of ``patterns`` that matches a whole module path, after
    ``prefix``; None if none does. ``named``: what they are in errors.

    Others write such patterns. The module ``re`` would take years for some, as PEFT does. ``regex``
    matches most of them at once, and has a limit of time.
    """
    compiled = {}
    for pattern in patterns:
        try:
            with warnings.catch_warnings(action="ignore"):  # of a nested set
                compiled[pattern] = regex.compile(f"{prefix}({pattern})")
        except (regex.error, RecursionError, OverflowError) as error:
            raise StudyError(f"{named} has {short(pattern)}, no valid regex ({error})") from None

    def first(path: str) -> str | None:
        for pattern, each in compiled.items():
            try:
                if each.fullmatch(path, timeout=MATCHING_SECONDS):
                    return pattern
            except (TimeoutError, MemoryError):
                why = f"{named} has {short(pattern)}, which takes too long on {short(path)}"
                raise StudyError(f"{why}: write the names of the modules") from None
        return None

    return first


def resolve_targets(linears: Collection[str], targets: str | Sequence[str]) -> list[str]:
    """The paths among ``linears`` (and weights of experts) that ``targets`` names, in order.

    ``targets`` is read as PEFT reads ``target_modules``: ``all-linear``; a list of paths or ends of
    paths; or a regex on whole paths. In addition, ``attention`` and ``mlp`` name one half of each
    block, and a single name is a list of one.
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
            matching = path_matcher([targets], "adapter.targets")
            found = {path for path in linears if matching(path) is not None}
        except StudyError as error:
            raise StudyError(f"{error}: {choices}") from None
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
    divide: Callable[[], None] = lambda: None,
) -> Iterator[list[LoraBank]]:
    """Context manager: every layer in ``layers`` has adapters; the plain model is restored on exit.

    Yields their banks. Banks replace linears; :class:`~study.adapters.experts.AdaptedExperts`
    replaces a module of experts. ``bank_type``: of the linears. ``divide``: called once the
    adapters are in place, to divide them among processes.
    """
    device = next(model.parameters()).device
    banks: list[LoraBank] = []
    replaced: dict[str, Any] = {}
    experts: dict[str, list[ExpertBank]] = defaultdict(list)
    for layer in layers:
        owner, _, name = layer.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(getattr(module, name, None), nn.Parameter):
            experts[owner].append(ExpertBank(module, layer, specs, contraction))
            banks.append(experts[owner][-1])
        else:
            replaced[layer] = bank_type(model.get_submodule(layer), layer, specs, contraction)
            banks.append(replaced[layer])
    replaced |= {
        owner: AdaptedExperts(model.get_submodule(owner), of_owner)
        for owner, of_owner in experts.items()
    }
    plain = {path: model.get_submodule(path) for path in replaced}
    try:
        for bank in banks:
            bank.buckets.to(device)
        for path, module in replaced.items():
            model.set_submodule(path, module)
        divide()
        for bank in banks:
            bank.make_pairs()
        yield banks
    finally:
        for path, module in plain.items():
            model.set_submodule(path, module)
