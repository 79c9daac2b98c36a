"""One loop: the cells of a fold over one frozen base, in lockstep.

A fold is K cells that go through the base in one forward pass, their sequences stacked along the batch. Nothing but the
adapter layers knows of it; each cell has its own batches, loss, clipping, optimizer and schedule, so a folded cell
follows the path that it follows alone. Letters: ``K`` cells, ``B`` sequences, ``T`` tokens, ``N`` supervised tokens.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from study.adapters import (
    LoraBank,
    LoraPair,
    adapted,
    features,
    infinite,
    merged_once,
    resolve_targets,
    truncating,
)
from study.adapters.infinite import InfiniteRankBank
from study.config import CellConfig, chosen, eval_steps, probe_steps, truncation_ranks
from study.data import IGNORED, Corpus, TokenBatch
from study.models import FrozenBase
from study.models.compiled import CompiledBlocks, compiled_blocks
from study.probes import Alignment, NormProbe, Sent
from study.theory import LAST_STEP
from study.training.loss import target_losses
from study.training.optimizers import Learner
from study.training.run import Run, may_trim
from study.vocabulary.quantities import (
    ALIGNMENTS,
    BATCHES,
    HELDOUT,
    NOISE,
    SITES,
    STATS,
    TRAIN,
    UPDATES,
    USUAL,
    WEIGHTS,
)


@dataclass(frozen=True)
class CellStep:
    """What the ``cell``-th of a fold has to show for one step: a row of ``metrics`` (less ``cell_id``), its ``probes``
    if measured, and at the last step its ``truncations`` if asked for.

    ``diverged`` says that loss or gradient norm was not finite at this step; the cell has no later one. ``adapter``, at
    the last step of a cell with ``train.save_adapter``: its factors by layer, copied to the CPU.
    """

    cell: int
    metrics: dict[str, float]
    sent: Sequence[Sent] = field(repr=False)
    diverged: bool
    adapter: dict[str, LoraPair] | None = field(default=None, repr=False)
    truncations: pd.DataFrame | None = field(default=None, repr=False)

    @property
    def arrived(self) -> bool:
        """Whether the probes' numbers have left the device, which they do while it trains on."""
        return all(sent.arrived for sent in self.sent)

    @property
    def probes(self) -> pd.DataFrame | None:
        """The rows of the ``probes`` table, waited for; None where nothing was measured."""
        return (
            pd.concat([sent.frame(self.cell) for sent in self.sent], ignore_index=True)
            if self.sent
            else None
        )


def train(base: FrozenBase, corpus: Corpus, runs: Sequence[Run]) -> Iterator[list[CellStep | None]]:
    """Train a fold, yielding at each step s = 0 ... ``train.steps`` one result per cell (None once it has diverged).

    ``cells`` come ordered by rank and agree in everything but adapter, optimizer, seeds, clipping and schedule; one of
    infinite rank comes alone. Row s
    is measured with the weights after s updates, on the batch of step s; the last step only measures. Afterwards, and
    if the caller stops early, the base is without adapters again.
    """
    cells = [run.config for run in runs]
    shared = cells[0]
    layers = resolve_targets(base.card.linears, shared.adapter.targets)
    specs = [run.adapter for run in runs]
    bank_type = InfiniteRankBank if math.isinf(shared.adapter.rank) else LoraBank
    last, probed_at, evaluated_at = shared.train.steps, probe_steps(shared), eval_steps(shared)

    with (
        adapted(base.model, layers, specs, bank_type, runs[0].contraction) as banks,
        compiled_blocks(base, layers) if shared.pack.compile else nullcontext() as compiled,
    ):
        fold = Fold(base, corpus, cells, banks, compiled)
        for step in range(last + 1):
            alive_K = fold.alive_K
            probe = fold.probe(TRAIN) if step in probed_at else None
            sent = fold.probe_elsewhere(step) if step in probed_at else []
            metrics = {"lr": fold.learning_rates()}
            if step in evaluated_at:
                metrics["eval_loss"] = fold.heldout_losses()
                if shared.train.answer_tokens:
                    metrics["exact_match"] = fold.exact_matches(shared.train.answer_tokens)
            if step < last or probe:
                metrics["loss"] = fold.backward(step, probe)
                metrics["grad_norm"] = fold.grad_norms()
                fold.mark_diverged(metrics["loss"], metrics["grad_norm"])
            if probe:
                probe.before_update()
            if step < last:
                metrics["clip_factor"] = fold.update()
                if probe:
                    probe.after_update(metrics["clip_factor"])
                    if "adapter_update" in probe.sites and step <= LAST_STEP:
                        metrics["loss_after"] = fold.losses_after(step)
            if probe:
                sent.insert(0, probe.send(step))
            results_K = fold.results(
                step, metrics, sent, fold.truncations() if step == last else None
            )
            yield [
                result if alive else None for result, alive in zip(results_K, alive_K, strict=True)
            ]
            if not any(fold.alive_K):
                return


class Watcher(Protocol):
    """What looks on at a pass: a probe."""

    def watch(self, real_BT: Tensor | None = None) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one micro-batch."""
        ...


class Fold:
    """The cells of one fold, their learners, and the passes through the base that they share."""

    def __init__(
        self,
        base: FrozenBase,
        corpus: Corpus,
        cells: Sequence[CellConfig],
        banks: Sequence[LoraBank],
        compiled: CompiledBlocks | None = None,
    ) -> None:
        self.base, self.corpus, self.cells, self.banks, self.compiled = (
            base,
            corpus,
            cells,
            banks,
            compiled,
        )
        self.learners = [Learner(config, cell, banks) for cell, config in enumerate(cells)]
        self.tokens_K = [0] * len(cells)
        self.alignment, self.aligned_until = self._alignment()
        self.dropout_before: list[list[Tensor] | None] = []
        self.began = time.perf_counter()

    @property
    def alive_K(self) -> list[bool]:
        """Which cells have not diverged."""
        return [not learner.diverged for learner in self.learners]

    # What is measured, on which batch.

    def probe(self, batch: str) -> NormProbe | None:
        """A fresh probe of what the configuration asks for on ``train``, ``heldout`` or ``noise``; None if nothing.

        Weights and updates belong to no batch: they are measured once, beside ``train`` or, without it, ``heldout``
        (which has no updates: nothing is trained on it).
        """
        wanted = self.cells[0].probes
        batches = chosen("probes.batch", wanted.batch, BATCHES)
        sites = chosen("probes.sites", wanted.sites, SITES)
        if batch == HELDOUT:
            elsewhere = (*UPDATES, "adapter_update", *(WEIGHTS if TRAIN in batches else ()))
            sites = tuple(site for site in sites if site not in elsewhere)
        if batch == NOISE:
            sites = tuple(site for site in sites if site in ("adapter_out", "adapter_in_grad"))
        if math.isinf(self.cells[0].adapter.rank):
            sites = tuple(site for site in sites if site in infinite.SITES)
        if batch not in batches or not sites:
            return None
        stats = chosen("probes.stats", wanted.stats, STATS, USUAL)
        return NormProbe(
            self.base.model,
            sites=sites,
            stats=stats,
            tokens=wanted.tokens,
            alignment=self.alignment,
        )

    def probe_elsewhere(self, step: int) -> list[Sent]:
        """Measure on the batches other than the step's own, before its pass."""
        sent = []
        if probe := self.probe(HELDOUT):
            self._probe_heldout(probe)
            sent.append(probe.send(step, HELDOUT))
        if probe := self.probe(NOISE):
            probe.feed_noise()
            sent.append(probe.send(step, NOISE))
        return sent

    def _probe_heldout(self, probe: NormProbe) -> None:
        """A pass on the first ``batch_size`` held-out examples, without dropout.

        Gradients never reach ``.grad`` and no stream is drawn from, so that training is the same with it and without.
        """
        batch = next(self.corpus.heldout.batches(self.cells[0].train.batch_size))
        batch_K, gradients = self._stacked([batch] * len(self.cells)), None
        for bank in self.banks:
            bank.eval()
        with probe.watch(batch_K.real_BT), torch.set_grad_enabled(probe.needs_backward):
            loss_K = self._nll_sums(batch_K) / batch.supervised
            if probe.needs_backward:
                stacks = [list(bank.buckets.parameters()) for bank in self.banks]
                flat = iter(
                    torch.autograd.grad(
                        loss_K.sum(), [stack for of_bank in stacks for stack in of_bank]
                    )
                )
                gradients = [_pairs([next(flat) for _ in of_bank]) for of_bank in stacks]
        for bank in self.banks:
            bank.train()
        probe.before_update(gradients)

    def _alignment(self) -> tuple[Alignment | None, int]:
        """Weight gradients to hold where an alignment is asked for, and the last step that it is measured at."""
        wanted = self.cells[0].probes
        stats = [s for s in chosen("probes.stats", wanted.stats, STATS, USUAL) if s in ALIGNMENTS]
        until = max((step for step in probe_steps(self.cells[0]) if step <= LAST_STEP), default=0)
        return (Alignment(self.base.model, stats), until) if stats and until else (None, 0)

    def _accumulating(self, step: int) -> AbstractContextManager[None]:
        """Around a training pass: hold its weight gradients, if a later probe needs them; then let go of them all."""
        if step >= self.aligned_until:
            self.alignment = None
        return (
            nullcontext()
            if self.alignment is None
            else self.alignment.accumulate(self.learning_rates())
        )

    # What is trained.

    def learning_rates(self) -> list[float]:
        """The rates of the coming update."""
        return [float(learner.schedule.get_last_lr()[0]) for learner in self.learners]

    def backward(self, step: int, probe: Watcher | None = None) -> list[float]:
        """The ``K`` mean losses over the step's supervised tokens, and in each cell's pairs their gradients."""
        micro_batches, supervised_K = self._micro_batches(step)
        real_K = torch.stack([self._per_cell(m.real_BT) for m in micro_batches]).sum(0).tolist()
        self.tokens_K = [seen + new for seen, new in zip(self.tokens_K, real_K, strict=True)]
        total_K = torch.zeros(len(self.cells), device=self.base.device)
        for bank in self.banks:
            bank.zero_grad()
        if probe:
            self.dropout_before = [bank.dropout_state() for bank in self.banks]
        unobserved = not probe and self.alignment is None
        with (
            merged_once(self.banks) if len(micro_batches) > 1 else nullcontext(),
            self.compiled.running() if self.compiled and unobserved else nullcontext(),
        ):
            for batch in micro_batches:
                with (
                    probe.watch(batch.real_BT) if probe else nullcontext(),
                    self._accumulating(step),
                ):
                    loss_K = self._nll_sums(batch) / supervised_K
                    loss_K.sum().backward()
                total_K += loss_K.detach()
        for bank in self.banks:
            bank.bind_grads()
        return total_K.tolist()

    @torch.no_grad()
    def losses_after(self, step: int) -> list[float]:
        """Each cell's loss on the step's micro-batches after its update, with the dropout masks of before it.

        ``(loss - loss_after) / descent`` is then the actual over the linearised change: 1 in the lazy regime. Costs a
        forward pass, and so is taken only where a prediction hangs on it, up to step ``LAST_STEP``. The masks leave
        each dropout stream where :meth:`backward` left it.
        """
        for bank, state in zip(self.banks, self.dropout_before, strict=True):
            bank.rewind_dropout(state)
        micro_batches, supervised_K = self._micro_batches(step)
        with merged_once(self.banks):
            loss_K = (
                torch.stack([self._nll_sums(batch) / supervised_K for batch in micro_batches])
                .sum(0)
                .tolist()
            )
        return [
            loss if alive else math.nan for loss, alive in zip(loss_K, self.alive_K, strict=True)
        ]

    def grad_norms(self) -> list[float]:
        """Each cell's gradient norm over all its adapters, before clipping."""
        return torch.stack([learner.measure_grad_norm() for learner in self.learners]).tolist()

    def mark_diverged(self, loss_K: list[float], norm_K: list[float]) -> None:
        """Note the cells whose loss or gradient norm is not finite: they are not stepped again."""
        for learner, loss, norm in zip(self.learners, loss_K, norm_K, strict=True):
            learner.diverged |= not (math.isfinite(loss) and math.isfinite(norm))

    def update(self) -> list[float]:
        """One optimizer step for every cell that has not diverged; what clipping multiplied each gradient by."""
        return [1.0 if learner.diverged else learner.update() for learner in self.learners]

    @torch.no_grad()
    def heldout_losses(self) -> list[float]:
        """Each cell's mean loss over the supervised tokens of the held-out examples."""
        sums_K, count = torch.zeros(len(self.cells), device=self.base.device), 0
        for bank in self.banks:
            bank.eval()
        with merged_once(self.banks):
            for batch in self.corpus.heldout.batches(self.cells[0].train.batch_size):
                sums_K += self._nll_sums(self._stacked([batch] * len(self.cells)))
                count += batch.supervised
        for bank in self.banks:
            bank.train()
        return (sums_K / count).tolist()

    def exact_matches(self, tokens: int) -> list[float]:
        """The share of held-out questions that each cell answers right, greedily and in at most ``tokens`` tokens."""
        questions, device = self.corpus.questions, self.base.device
        answers_K: list[list[list[int]]] = [[] for _ in self.cells]
        for bank in self.banks:
            bank.eval()
        for ids_BL, real_BL in questions.batches(self.cells[0].train.batch_size):
            ids_BL, real_BL = (
                rows_BL.repeat(len(self.cells), 1).to(device) for rows_BL in (ids_BL, real_BL)
            )
            with torch.autocast(
                device.type, torch.bfloat16, enabled=self.cells[0].precision == "bf16"
            ):
                answers_BL = self.base.continue_greedily(
                    ids_BL, real_BL, tokens, questions.eos_token_id, questions.padding_id
                )
            for answers, of_cell_BL in zip(
                answers_K, answers_BL.chunk(len(self.cells)), strict=True
            ):
                answers += of_cell_BL.tolist()
        for bank in self.banks:
            bank.train()
        return [questions.exact_match(answers) for answers in answers_K]

    def truncations(self) -> list[pd.DataFrame] | None:
        """Each cell's held-out loss with its adapters cut to lower ranks, and at their own; None: not asked for.

        Costs an SVD of a small core per layer, and an evaluation per rank.
        """
        most = max(min(features(bank.base)) for bank in self.banks)
        kept_K = [truncation_ranks(config, most) for config in self.cells]
        if not any(kept_K):
            return None
        rows_K: list[list[dict[str, float]]] = [[] for _ in self.cells]
        with truncating(self.banks) as truncation:
            for kept in sorted({kept for of_cell in kept_K for kept in of_cell}):
                share_K, loss_K = truncation.keep(kept), self.heldout_losses()
                for rows, of_cell, share, loss in zip(rows_K, kept_K, share_K, loss_K, strict=True):
                    if kept in of_cell:
                        rows.append({"kept": kept, "loss": loss, "share": share})
        return [pd.DataFrame(rows) for rows in rows_K]

    def results(
        self,
        step: int,
        metrics: dict[str, list[float]],
        sent: Sequence[Sent],
        truncations: Sequence[pd.DataFrame] | None,
    ) -> list[CellStep]:
        """The step's rows, one per cell. ``tokens`` counts real tokens seen, ``seconds`` the fold's time so far."""
        seconds = time.perf_counter() - self.began
        return [
            CellStep(
                cell=k,
                metrics={"step": step, "tokens": self.tokens_K[k], "seconds": seconds}
                | {name: values[k] for name, values in metrics.items()},
                sent=sent,
                diverged=learner.diverged,
                adapter=self._trained(k)
                if step == config.train.steps and config.train.save_adapter
                else None,
                truncations=None if truncations is None else truncations[k],
            )
            for k, (learner, config) in enumerate(zip(self.learners, self.cells, strict=True))
        ]

    def _trained(self, cell: int) -> dict[str, LoraPair]:
        pairs = {bank.layer: bank.pairs[cell] for bank in self.banks}
        return {
            n: LoraPair(A.detach().cpu().clone(), B.detach().cpu().clone(), g)
            for n, (A, B, g) in pairs.items()
        }

    def _micro_batches(self, step: int) -> tuple[list[TokenBatch], Tensor]:
        """A step's micro-batches, and how many supervised tokens each cell has in all of them, ``[K]`` on the device.

        Known before the first pass, so that micro-batches add up to the mean over the step, not to a mean of means.
        """
        micro_batches = [
            self._micro_batch(step, index) for index in range(self.cells[0].train.accumulation)
        ]
        supervised_K = torch.stack(
            [self._per_cell(m.targets_BT != IGNORED) for m in micro_batches]
        ).sum(0)
        return micro_batches, supervised_K.to(self.base.device)

    def _micro_batch(self, step: int, index: int) -> TokenBatch:
        """Every cell's own batch of one forward pass, stacked: ``[K * B, T]``, on the CPU."""
        train = self.cells[0].train
        position = step * train.accumulation + index
        return self._stacked(
            [self.corpus.train.batch(c.data.seed, position, train.batch_size) for c in self.cells]
        )

    def _stacked(self, batches: Sequence[TokenBatch]) -> TokenBatch:
        """Along the batch, ``[K * B, T]``, without columns of padding where they may be left out."""
        stacked = TokenBatch(
            torch.cat([batch.input_ids_BT for batch in batches]),
            torch.cat([batch.targets_BT for batch in batches]),
            torch.cat([batch.real_BT for batch in batches]),
        )
        return stacked.trimmed() if may_trim(self.cells, self.base.device) else stacked

    def _per_cell(self, mask_BT: Tensor) -> Tensor:
        """How many are true in each cell's share of a stacked batch, ``[K]``."""
        return mask_BT.reshape(len(self.cells), -1).sum(1)

    def _nll_sums(self, batch: TokenBatch) -> Tensor:
        """Each cell's sum of negative log-likelihoods, ``[K]``; logits exist only where there is a target."""
        device = self.base.device
        supervised_BT = (
            batch.targets_BT != IGNORED
        )  # looked at on the CPU, so that the device never waits
        rows_N = supervised_BT.flatten().nonzero().flatten()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.cells[0].precision == "bf16"):
            hidden_Nd = self.base.hidden_states(batch.input_ids_BT).flatten(0, 1)[rows_N.to(device)]
            targets_N = batch.targets_BT.flatten()[rows_N].to(device)
            nll_N = target_losses(hidden_Nd, targets_N, self.base.logits, self.base.vocabulary)
        return torch.stack(
            [nll.sum() for nll in nll_N.split(self._per_cell(supervised_BT).tolist())]
        )


def _pairs(stacks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What a bank's buckets hold, in the order of their parameters (A, B, A, B, ...), as the pair of every cell."""
    buckets = zip(stacks[::2], stacks[1::2], strict=True)
    return [pair for A_kRD, B_kOR in buckets for pair in zip(A_kRD, B_kOR, strict=True)]
