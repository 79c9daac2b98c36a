"""Which probes measure a fold, and on which batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from study.adapters import infinite
from study.config import chosen
from study.probes import NormProbe, Sent
from study.probes.weights import Gradients
from study.training.fold import Fold
from study.vocabulary.quantities import (
    BATCHES,
    HELDOUT,
    NOISE,
    NOISE_SITES,
    SITES,
    STATS,
    TRAIN,
    UPDATES,
    USUAL,
    WEIGHTS,
)
from study.vocabulary.thresholds import LAST_PREDICTED_STEP


def make_probe(fold: Fold, batch: str) -> NormProbe | None:
    """A new probe of what the configuration asks for on ``batch``; None if that is nothing.

    Weights and updates belong to no batch. They are measured once: beside ``train`` or, without it,
    beside ``heldout``, which has no updates.
    """
    wanted = fold.cells[0].probes
    batches = chosen("probes.batch", wanted.batch, BATCHES)
    sites = chosen("probes.sites", wanted.sites, SITES)
    if batch == HELDOUT:
        elsewhere = (*UPDATES, "adapter_update", *(WEIGHTS if TRAIN in batches else ()))
        sites = tuple(site for site in sites if site not in elsewhere)
    if batch == NOISE:
        sites = tuple(site for site in sites if site in NOISE_SITES)
    if math.isinf(fold.cells[0].adapter.rank):
        sites = tuple(site for site in sites if site in infinite.SITES)
    if batch not in batches or not sites:
        return None
    stats = chosen("probes.stats", wanted.stats, STATS, USUAL)
    return NormProbe(
        fold.base.model,
        sites=sites,
        stats=stats,
        tokens=wanted.tokens,
        alignment=fold.alignment,
        world=fold.world,
    )


def probe_update(fold: Fold, probe: NormProbe, clip_factor_K: Tensor) -> dict[str, Tensor]:
    """Measure the update of the fold's step. Returns metrics: the loss after it, at steps that have
    predictions.
    """
    probe.after_update(clip_factor_K.float())
    if "adapter_update" in probe.sites and fold.step <= LAST_PREDICTED_STEP:
        return {"loss_after": fold.losses_after(fold.step)}
    return {}


def probe_other_batches(fold: Fold, step: int) -> list[Sent]:
    """Measure on the held-out batch and on noise, before the pass on the training batch."""
    sent = []
    if probe := make_probe(fold, HELDOUT):
        _probe_heldout(fold, probe)
        sent.append(probe.send(step, HELDOUT))
    if probe := make_probe(fold, NOISE):
        probe.feed_noise()
        sent.append(probe.send(step, NOISE))
    return sent


def _probe_heldout(fold: Fold, probe: NormProbe) -> None:
    """A pass on the first ``batch_size`` held-out examples, without dropout.

    Gradients never reach ``.grad`` and no random stream advances, so training is the same with this
    pass and without.
    """
    batch = next(fold.corpus.heldout.batches(fold.cells[0].train.batch_size))
    batch_K, gradients = fold.stacked([batch] * len(fold.cells)), None
    with (
        fold.evaluating(),
        probe.watch(batch_K.real_BT),
        torch.set_grad_enabled(probe.needs_backward),
    ):
        loss_K = fold.nll_sums(batch_K) / batch.supervised
        if probe.needs_backward:
            gradients = _gradients(fold, loss_K.sum())
    probe.before_update(gradients)


def _gradients(fold: Fold, loss: Tensor) -> Gradients:
    """The gradients of ``loss`` by layer and cell. Those of the last step are not read any more.

    FSDP leaves the gradients of divided factors in ``.grad`` only.
    """
    if fold.world.size > 1:
        for bank in fold.banks:
            bank.zero_grad()
        loss.backward()
        for bank in fold.banks:
            bank.bind_grads()
        found = [[(A_RD.grad, B_OR.grad) for A_RD, B_OR, _ in bank.pairs] for bank in fold.banks]
        for bank in fold.banks:
            bank.zero_grad()
        return found
    stacks = [list(bank.buckets.parameters()) for bank in fold.banks]
    flat = iter(torch.autograd.grad(loss, [stack for of_bank in stacks for stack in of_bank]))
    return [_pairs([next(flat) for _ in of_bank]) for of_bank in stacks]


def _pairs(stacks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The tensors of a bank's buckets (A, B, A, B, ...) as one pair per cell."""
    buckets = zip(stacks[::2], stacks[1::2], strict=True)
    return [pair for A_kRD, B_kOR in buckets for pair in zip(A_kRD, B_kOR, strict=True)]
