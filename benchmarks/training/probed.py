"""What a probed step costs beside a plain one, by the sites that it measures."""

import time
from collections.abc import Iterator

import torch

from study.adapters import adapted, resolve_targets
from study.config import CellConfig
from study.probes import NormProbe
from study.training.allocator import keep_freed_memory
from study.training.loop import Fold
from study.training.run import Run
from study.vocabulary.quantities import (
    GRADIENTS,
    NOISE_SITES,
    SITES,
    SPECTRA,
    UPDATES,
    USUAL,
)

from .labels import PLAIN
from .ways import base_and_corpus

WITHOUT_SPECTRA = tuple(stat for stat in USUAL if stat not in SPECTRA)
ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PLAIN: ((), ()),
    "all sites": (tuple(SITES), WITHOUT_SPECTRA),
    "all sites and spectra": (tuple(SITES), USUAL),
    "activations": (("adapter_in", "layer_out", "layer_out_grad"), WITHOUT_SPECTRA),
    "sampled tokens": (NOISE_SITES, WITHOUT_SPECTRA),
    "delta_w": (("delta_w",), WITHOUT_SPECTRA),
    "A and B": (("A", "B"), WITHOUT_SPECTRA),
    "gradients": (GRADIENTS, WITHOUT_SPECTRA),
    "updates": ((*UPDATES, "adapter_update"), WITHOUT_SPECTRA),
}
"""The sites and stats of each kind of step, by name."""


def probed_steps(config: CellConfig, turns: int) -> Iterator[tuple[str, float]]:
    """Names of :data:`ASKED` with the seconds of a step, in turn.

    The first step of all, which also gets the memory, is not timed.
    """
    keep_freed_memory()
    base, corpus = base_and_corpus(config)
    run = Run.of(config, corpus, base.device)
    layers = resolve_targets(base.card.targets, config.adapter.targets)
    with adapted(base.model, layers, [run.adapter], contraction=run.contraction) as banks:
        fold = Fold(base, corpus, [config], banks)
        _seconds(fold, "all sites and spectra")
        for _ in range(turns):
            for name in ASKED:
                yield name, _seconds(fold, name)


def _seconds(fold: Fold, name: str) -> float:
    """Of a step as :func:`study.training.loop.train` does it. The numbers are not read."""
    sites, stats = ASKED[name]
    began = time.perf_counter()
    probe = NormProbe(fold.base.model, sites=sites, stats=stats) if sites else None
    fold.mark_diverged(fold.backward(0, probe), fold.grad_norms())
    if probe:
        probe.before_update()
    factor_K = fold.update()
    if probe:
        probe.after_update(factor_K.float())
        probe.send(0)
    if fold.base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
