"""Measurements of a fold other than its training loss: held-out examples, and probes."""

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import GenerationConfig

from study.adapters import infinite, merged_once, truncating
from study.config import chosen, truncation_ranks
from study.probes import NormProbe, Sent
from study.probes.norm_probe import Gradients
from study.training.fold import Fold
from study.vocabulary.quantities import (
    BATCHES,
    HELDOUT,
    NOISE,
    NOISE_SITES,
    SITES,
    STATS,
    TRAIN,
    UNDIVIDED,
    UPDATES,
    USUAL,
    WEIGHTS,
)


@torch.no_grad()
def heldout_losses(
    fold: Fold, first_K: Tensor | None = None, examples: list[Tensor] | None = None
) -> Tensor:
    """Each cell's mean held-out loss in nats, ``[K]``. ``first_K``: the first batch's sums, if
    known. ``examples``: gets the sums of every example, ``[K, E]`` a batch."""
    sums_K, count = torch.zeros(len(fold.cells), device=fold.base.device), 0
    known = [] if first_K is None or examples is not None else [first_K]
    with fold.evaluating(), merged_once(fold.banks):
        for batch in fold.corpus.heldout.batches(fold.cells[0].train.batch_size):
            count += batch.supervised
            if known:
                sums_K += known.pop()
                continue
            stacked = fold.stacked([batch] * len(sums_K))
            if examples is None:
                sums_K += fold.nll_sums(stacked)
            else:
                examples.append(fold.nll_by_example(stacked))
                sums_K += examples[-1].sum(1)
    return fold.world.sum(sums_K) / count


def last_tables(fold: Fold, examples: list[Tensor] | None) -> list[dict[str, pd.DataFrame]]:
    """Each cell's tables of the last step: ``truncations`` and ``examples``, if asked for."""
    tables_K: list[dict[str, pd.DataFrame]] = [{} for _ in fold.cells]
    if cut_K := truncated_losses(fold):
        for tables, cut in zip(tables_K, cut_K, strict=True):
            tables["truncations"] = cut
    if examples:
        tokens = [batch.supervised for batch in fold.corpus.heldout.batches(1)]
        for tables, sums in zip(tables_K, torch.cat(examples, 1).tolist(), strict=True):
            tables["examples"] = pd.DataFrame({"loss": sums, "tokens": tokens})
    return tables_K


@torch.no_grad()
def exact_matches(fold: Fold, tokens: int) -> list[float]:
    """The share of held-out questions that each cell answers, greedily in at most ``tokens``
    tokens."""
    questions, device = fold.corpus.questions, fold.base.device
    model: Any = fold.base.model
    ends = {"eos_token_id": questions.eos_token_id, "pad_token_id": questions.padding_id}
    greedy = GenerationConfig(max_new_tokens=tokens, do_sample=False, use_cache=True, **ends)
    answers_K: list[list[list[int]]] = [[] for _ in fold.cells]
    bf16 = fold.cells[0].precision == "bf16"
    with fold.evaluating(), merged_once(fold.banks):
        for batch in questions.batches(fold.cells[0].train.batch_size):
            ids_BL, real_BL = (rows_BL.repeat(len(fold.cells), 1).to(device) for rows_BL in batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                whole_BL = model.generate(ids_BL, greedy, attention_mask=real_BL.long())
            # Of ``tokens`` tokens, or fewer once every row has its eos; padding follows it.
            chunks = whole_BL[:, ids_BL.shape[1] :].chunk(len(fold.cells))
            for answers, of_cell_BL in zip(answers_K, chunks, strict=True):
                answers += of_cell_BL.tolist()
    return [questions.exact_match(answers) for answers in answers_K]


def truncated_losses(fold: Fold) -> list[pd.DataFrame] | None:
    """Each cell's held-out loss with its adapters cut to lower ranks; None without truncations."""
    largest = max(min(bank.features) for bank in fold.banks)
    kept_K = [truncation_ranks(config, largest) for config in fold.cells]
    if not any(kept_K):
        return None
    rows_K: list[list[dict[str, float]]] = [[] for _ in fold.cells]
    with truncating(fold.banks) as keep:
        for kept in sorted({kept for of_cell in kept_K for kept in of_cell}):
            share_K, loss_K = keep(kept), heldout_losses(fold).tolist()
            for rows, of_cell, share, loss in zip(rows_K, kept_K, share_K, loss_K, strict=True):
                if kept in of_cell:
                    rows.append({"kept": kept, "loss": loss, "share": share})
    return [pd.DataFrame(rows) for rows in rows_K]


def make_probe(fold: Fold, batch: str) -> NormProbe | None:
    """A new probe of the configuration's sites on ``batch``; None if there are none.

    Weights and updates belong to no batch. They are measured once: with ``train`` or, without it,
    with ``heldout``, which has no updates.
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
    tokens, alignment = wanted.tokens, fold.alignment
    return NormProbe(fold.base.model, sites=sites, stats=stats, tokens=tokens, alignment=alignment)


def sent_by(fold: Fold, probe: NormProbe, step: int, batch: str) -> Sent:
    """The numbers of ``probe``, added up over processes. Process 0 sends what each has whole."""
    whole = ("delta_w", *UNDIVIDED, *(NOISE_SITES if batch == NOISE else ()))
    return probe.send(step, batch, fold.world.added, whole if fold.world.number else ())


def probe_other_batches(fold: Fold, step: int) -> tuple[list[Sent], Tensor | None]:
    """Measure on the held-out batch, whose sums of losses ``[K]`` it also returns, and on noise."""
    sent: list[Sent] = []
    sums_K = None
    if probe := make_probe(fold, HELDOUT):
        sums_K = _probe_heldout(fold, probe)
        sent.append(sent_by(fold, probe, step, HELDOUT))
    if probe := make_probe(fold, NOISE):
        probe.feed_noise()
        sent.append(sent_by(fold, probe, step, NOISE))
    return sent, sums_K


def _probe_heldout(fold: Fold, probe: NormProbe) -> Tensor:
    """A pass on the first held-out batch, without dropout or ``.grad``: the sums of losses."""
    batch = next(fold.corpus.heldout.batches(fold.cells[0].train.batch_size))
    batch_K, gradients = fold.stacked([batch] * len(fold.cells)), None
    with (
        fold.evaluating(),
        fold.watched(probe, batch_K),
        torch.set_grad_enabled(probe.needs_backward),
    ):
        sums_K = fold.nll_sums(batch_K)
        if probe.needs_backward:
            gradients = _gradients(fold, probe, (sums_K / batch.supervised).sum())
    probe.before_update(gradients, fold.world.sum)
    return sums_K.detach()


def _gradients(fold: Fold, probe: NormProbe, loss: Tensor) -> Gradients:
    """The gradients of ``loss`` by layer and stack. FSDP leaves those of divided factors in
    ``.grad``."""
    if fold.world.size > 1:
        for bank in fold.banks:
            bank.zero_grad()
        loss.backward()
        found = [[stack.gradients for stack in layer.stacks()] for layer in probe.layers]
        for bank in fold.banks:
            bank.zero_grad()
        return found
    stacks = [list(bank.buckets.parameters()) for bank in fold.banks]
    flat = iter(torch.autograd.grad(loss, [stack for of_bank in stacks for stack in of_bank]))
    return [[(next(flat), next(flat)) for _ in of_bank[::2]] for of_bank in stacks]  # A, B, A, ...
