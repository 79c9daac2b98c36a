"""Held-out measurements of a fold: loss, exact match, and loss at lower ranks."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from study.adapters import merged_once, truncating
from study.config import truncation_ranks
from study.training.fold import Fold


def evaluations(fold: Fold) -> dict[str, Sequence[float] | Tensor]:
    """What is measured on held-out examples as training goes on, by metric and cell."""
    found: dict[str, Sequence[float] | Tensor] = {"eval_loss": heldout_losses(fold)}
    if tokens := fold.cells[0].train.answer_tokens:
        found["exact_match"] = exact_matches(fold, tokens)
    return found


@torch.no_grad()
def heldout_losses(fold: Fold) -> Tensor:
    """Each cell's mean loss over the supervised tokens of the held-out examples, in nats, ``[K]``.

    Does not wait for the device.
    """
    sums_K, count = torch.zeros(len(fold.cells), device=fold.base.device), 0
    with fold.evaluating(), merged_once(fold.banks):
        for batch in fold.corpus.heldout.batches(fold.cells[0].train.batch_size):
            sums_K += fold.nll_sums(fold.stacked([batch] * len(fold.cells)))
            count += batch.supervised
    return fold.world.sum(sums_K) / count


@torch.no_grad()
def exact_matches(fold: Fold, tokens: int) -> list[float]:
    """The share of held-out questions that each cell answers correctly.

    Answers are greedy and have at most ``tokens`` tokens. Waits for the device at every token.
    """
    questions, device = fold.corpus.questions, fold.base.device
    answers_K: list[list[list[int]]] = [[] for _ in fold.cells]
    bf16 = fold.cells[0].precision == "bf16"
    with fold.evaluating(), merged_once(fold.banks):
        for batch in questions.batches(fold.cells[0].train.batch_size):
            ids_BL, real_BL = (rows_BL.repeat(len(fold.cells), 1).to(device) for rows_BL in batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                answers_BL = fold.base.continue_greedily(
                    ids_BL, real_BL, tokens, questions.eos_token_id, questions.padding_id
                )
            chunks = answers_BL.chunk(len(fold.cells))
            for answers, of_cell_BL in zip(answers_K, chunks, strict=True):
                answers += of_cell_BL.tolist()
    return [questions.exact_match(answers) for answers in answers_K]


def truncated_losses(fold: Fold) -> list[pd.DataFrame] | None:
    """Each cell's held-out loss with its adapters truncated to lower ranks, and at its own rank.

    None if no truncation is asked for. Costs an SVD of a small core per layer, and an evaluation
    per rank.
    """
    largest = max(min(bank.features) for bank in fold.banks)
    kept_K = [truncation_ranks(config, largest) for config in fold.cells]
    if not any(kept_K):
        return None
    rows_K: list[list[dict[str, float]]] = [[] for _ in fold.cells]
    with truncating(fold.banks) as truncation:
        for kept in sorted({kept for of_cell in kept_K for kept in of_cell}):
            share_K, loss_K = truncation.keep(kept), heldout_losses(fold).tolist()
            for rows, of_cell, share, loss in zip(rows_K, kept_K, share_K, loss_K, strict=True):
                if kept in of_cell:
                    rows.append({"kept": kept, "loss": loss, "share": share})
    return [pd.DataFrame(rows) for rows in rows_K]
