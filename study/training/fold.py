"""A fold: cells, and the passes through the base that they share.

The fold's sequences are stacked along the batch. Only the adapter layers know which rows belong to
which cell. Letters: ``K`` cells, ``B`` sequences, ``T`` tokens, ``N`` supervised tokens, ``d``
features of the hidden states, ``V`` tokens in the vocabulary.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from study.adapters import AdapterSpec, Contraction, LoraBank, merged_once
from study.config import CellConfig, chosen, probe_steps
from study.data.batches import IGNORED, Corpus, TokenBatch, TokenTable
from study.errors import StudyError
from study.models import FrozenBase
from study.models.base import CompiledBlocks
from study.models.messages import replaced
from study.probes import Alignment, NormProbe
from study.probes.activations import Sample, spaced
from study.training.optimizers import Learner
from study.training.peft_format import read_adapter
from study.training.sharding import ALONE, Processes
from study.vocabulary.quantities import ALIGNMENTS, STATS, USUAL
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

COMPILED_COLUMNS = 64
"""Compiled blocks get batches whose columns are a multiple of this: each shape is a program."""
PAYS = 0.9
"""``pack.padding_free=auto`` leaves out padding if at most this share of a batch is real."""
SAMPLED_BATCHES = 8
"""Batches that :func:`typical_step` averages over."""


def adapter_spec(config: CellConfig) -> AdapterSpec:
    """How a cell's adapters are drawn; at infinite rank with the limit of ``gamma sqrt(rank)``."""
    adapter = config.adapter
    gamma = adapter.alpha if math.isinf(adapter.rank) else adapter.gamma
    start = read_adapter(Path(adapter.path)).pairs if adapter.path else None
    return AdapterSpec(adapter.rank, gamma, config.seed, adapter.dropout, adapter.init, start)


def contraction_of(config: CellConfig, corpus: Corpus) -> Contraction:
    """How the products of a cell's adapters are computed."""
    form = config.adapter.contraction
    if config.train.shard:  # merged products would need whole factors between passes
        form = config.bf16_form or "factored"
    return Contraction(form, typical_step(config, corpus)[0])


def typical_step(config: CellConfig, corpus: Corpus) -> tuple[int, int]:
    """Tokens of a cell in one optimizer step, and those with a loss: means over some batches."""
    size, accumulation = config.train.batch_size, config.train.accumulation
    free = config.pack.padding_free if may_leave_out_padding([config]) else False
    order = corpus.train, config.data.seed, size
    tokens, supervised = _of_sampled_batches(*order, columns([config]), free)
    return tokens * accumulation // SAMPLED_BATCHES, supervised * accumulation // SAMPLED_BATCHES


@lru_cache(maxsize=1024)
def _of_sampled_batches(
    table: TokenTable, seed: int, batch_size: int, multiple: int, padding_free: bool | str
) -> tuple[int, int]:
    """A thousand cells of a sweep have a few orders of their batches."""
    tokens = supervised = 0
    for position in range(SAMPLED_BATCHES):
        batch = table.batch(seed, position, batch_size)
        supervised += batch.supervised
        batch = batch.trimmed(multiple)
        real, places = int(batch.real_BT.sum()), batch.real_BT.numel()
        tokens += real if padding_free and pays(padding_free, real, places) else places
    return tokens, supervised


def columns(cells: Sequence[CellConfig]) -> int:
    """A batch keeps a multiple of this many columns; further padding is cut off. With dropout all
    padding stays: the shape of a cell's mask must not depend on the other cells of its fold.
    """
    if any(cell.adapter.dropout for cell in cells):
        return cells[0].data.sequence_length
    return COMPILED_COLUMNS if cells[0].pack.compile else 1


def may_leave_out_padding(cells: Sequence[CellConfig]) -> bool:
    """Whether the real tokens of a batch may share one row, if the base separates sequences."""
    shared = cells[0]
    allowed = shared.pack.padding_free is not False and not shared.train.shard
    return allowed and columns(cells) == 1


def pays(padding_free: bool | str, real: int, places: int) -> bool:
    """Whether to compute ``real`` tokens in one row instead of ``places`` with padding."""
    return padding_free is True or real <= PAYS * places


class Fold:
    """K cells in lockstep. Losses and norms are ``[K]`` tensors on the device, and only the
    evaluation of answers waits for it. ``compiled``: the blocks that plain passes run, if any."""

    def __init__(
        self,
        base: FrozenBase,
        corpus: Corpus,
        cells: Sequence[CellConfig],
        banks: Sequence[LoraBank],
        world: Processes = ALONE,
    ) -> None:
        self.base, self.corpus, self.cells, self.banks = base, corpus, cells, banks
        self.compiled: CompiledBlocks | None = None
        self.world = world
        if cells[0].data.sample_packing and not base.separates_sequences:
            why = f"{base.card.name} can't attend to each example of a row alone"
            raise StudyError(f"data.sample_packing=true: {why}: use false")
        self.padding_free = base.separates_sequences and may_leave_out_padding(cells)
        self.learners = [Learner(config, cell, banks) for cell, config in enumerate(cells)]
        self.alive_K = torch.ones(len(cells), dtype=torch.bool, device=base.device)
        self.norm_K = torch.full((len(cells),), math.nan, device=base.device)
        self.tokens_K = [0] * len(cells)
        wanted = chosen("probes.stats", cells[0].probes.stats, STATS, USUAL)
        stats = [stat for stat in wanted if stat in ALIGNMENTS]
        predicted = (step for step in probe_steps(cells[0]) if step <= LAST_PREDICTED_STEP)
        self.aligned_until = max(predicted, default=0) if stats else 0
        """The last step that measures alignments; 0 without any."""
        self.alignment = Alignment(base.model, stats, world.sum) if self.aligned_until else None
        """The weight gradients that alignments need."""
        self.dropout_before: list[list[Tensor] | None] = []
        self.step = 0
        self.began, self.earlier_K = time.perf_counter(), [0.0] * len(cells)

    @property
    def seconds_K(self) -> list[float]:
        here = time.perf_counter() - self.began
        return [earlier + here for earlier in self.earlier_K]

    def learning_rates(self) -> list[float]:
        return [float(learner.schedule.get_last_lr()[0]) for learner in self.learners]

    # The passes of one optimizer step.

    def backward(self, step: int, probe: NormProbe | None = None) -> Tensor:
        """The passes of the micro-batches of ``step``: each cell's mean loss over its supervised
        tokens, ``[K]``, and the gradients of that mean in its pairs."""
        micro_batches, supervised_K = self._micro_batches(step)
        real_K = torch.stack([self._per_cell(m.real_BT) for m in micro_batches]).sum(0).tolist()
        self.tokens_K = [seen + new for seen, new in zip(self.tokens_K, real_K, strict=True)]
        total_K = torch.zeros(len(self.cells), device=self.base.device)
        for bank in self.banks:
            bank.zero_grad()
        if probe:
            self.dropout_before = [bank.dropout_state() for bank in self.banks]
        if step >= self.aligned_until:
            self.alignment = None
        compiled = None if probe or self.alignment else self.compiled
        several = len(micro_batches) > 1
        with (
            merged_once(self.banks, ahead=bool(compiled)) if several else nullcontext(),
            compiled.running() if compiled else nullcontext(),
        ):
            for batch in micro_batches:
                with (
                    self.watched(probe, batch) if probe else nullcontext(),
                    self.alignment.accumulate(self.learning_rates())
                    if self.alignment
                    else nullcontext(),
                ):
                    loss_K = self.nll_sums(batch) / supervised_K
                    loss_K.sum().backward()
                total_K += loss_K.detach()
        for bank in self.banks:
            bank.bind_grads()
        return self.world.sum(total_K)

    def watched(self, probe: NormProbe, batch: TokenBatch) -> AbstractContextManager[int]:
        """``probe.watch`` on this process's rows of a batch. The sample is that of one process."""
        world, real_BT = self.world, batch.real_BT
        if world.size == 1:
            return probe.watch(real_BT)
        sampled_BT = spaced(real_BT.reshape(1, -1), probe.tokens).view_as(real_BT)
        parts = world.rows(sampled_BT, False)
        joined = partial(world.joined, sizes=[int(part.sum()) for part in parts])
        sample = Sample(parts[world.number], joined)
        return probe.watch(world.rows(real_BT, False)[world.number], sample)

    def grad_norms(self) -> Tensor:
        """Each cell's gradient norm over all its adapters, before clipping, ``[K]``."""
        self.norm_K = self.world.norm(torch.stack([each.grad_norm() for each in self.learners]))
        return self.norm_K

    def mark_diverged(self, loss_K: Tensor, norm_K: Tensor) -> None:
        """Mark the cells whose loss or gradient norm is not finite: they take no further step."""
        self.alive_K = self.alive_K & loss_K.isfinite() & norm_K.isfinite()

    def update(self) -> Tensor:
        """One optimizer step for every cell alive. Returns each one's clip factor, ``[K]``."""
        each = zip(self.learners, self.alive_K, self.norm_K, strict=True)
        return torch.stack([learner.update(alive, norm) for learner, alive, norm in each])

    @torch.no_grad()
    def losses_after(self, step: int) -> Tensor:
        """Each cell's loss ``[K]`` on the batch of ``step`` after its update, with the same dropout
        masks.

        NaN for a cell that has diverged. ``(loss - loss_after) / descent`` is the actual over the
        linearised change of the loss: 1 in the lazy regime. It costs a forward pass, so only steps
        with predictions have it. The dropout streams end where :meth:`backward` left them.
        """
        for bank, state in zip(self.banks, self.dropout_before, strict=True):
            bank.set_dropout(state)
        micro_batches, supervised_K = self._micro_batches(step)
        with merged_once(self.banks):
            losses_K = [self.nll_sums(batch) / supervised_K for batch in micro_batches]
        return self.world.sum(torch.stack(losses_K).sum(0)).where(self.alive_K, math.nan)

    # Batches, and the losses on them.

    def evaluating(self) -> AbstractContextManager[None]:
        """Context manager: no dropout. The frozen linears keep their mode: some quantised linears
        compute differently in train mode."""
        return replaced("training", dict.fromkeys(self.banks, False))

    def nll_sums(self, batch: TokenBatch) -> Tensor:
        """Each cell's sum of negative log-likelihoods in nats over this process's rows, ``[K]``."""
        nll_N, supervised_BT = self._nll(batch)
        sizes_K = self._per_cell(supervised_BT).tolist()
        return torch.stack([nll.sum() for nll in nll_N.split(sizes_K)])

    def nll_by_example(self, batch: TokenBatch) -> Tensor:
        """The same sums for each of a cell's E examples, ``[K, E]``, in one process."""
        nll_N, supervised_BT = self._nll(batch)
        lengths = torch.tensor([length for row in batch.lengths for length in row])
        example_N = torch.repeat_interleave(lengths)[supervised_BT[batch.real_BT]]
        sums = torch.zeros(len(lengths), device=nll_N.device)
        sums.index_add_(0, self.base.sent(example_N), nll_N)
        return sums.view(len(self.cells), -1)

    def _nll(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The negative log-likelihoods of this process's supervised tokens, ``[N]``, and where they
        are, ``[B, T]`` on the CPU."""
        base, world = self.base, self.world
        input_ids_BT = world.rows(batch.input_ids_BT, 0)[world.number]
        targets_BT = world.rows(batch.targets_BT, IGNORED)[world.number]
        supervised_BT = targets_BT != IGNORED  # on the CPU, so that the device never waits
        rows_N = supervised_BT.flatten().nonzero().flatten()
        bf16 = self.cells[0].precision == "bf16"
        with torch.autocast(base.device.type, torch.bfloat16, enabled=bf16):
            hidden_BTd = base.hidden_states(input_ids_BT, batch.lengths)
            hidden_Nd = hidden_BTd.flatten(0, 1)[base.sent(rows_N)]
            targets_N = base.sent(targets_BT.flatten()[rows_N])
            nll_N = target_losses(hidden_Nd, targets_N, base.logits, base.card.vocabulary)
        return nll_N, supervised_BT

    def stacked(self, batches: Sequence[TokenBatch]) -> TokenBatch:
        """One batch per cell in one: ``[K * B, T]``, or a row of real tokens per cell, ``[K,
        N]``."""
        stacked = TokenBatch.stacked(batches).trimmed(columns(self.cells))
        if self.padding_free:
            rows = TokenBatch.in_rows(batches)
            sizes = rows.real_BT.numel(), stacked.real_BT.numel()
            if pays(self.cells[0].pack.padding_free, *sizes):
                return rows
        return stacked

    def _micro_batches(self, step: int) -> tuple[list[TokenBatch], Tensor]:
        """A step's micro-batches, and each cell's supervised tokens in all of them, ``[K]``."""
        accumulation = self.cells[0].train.accumulation
        size, table = self.cells[0].train.batch_size, self.corpus.train
        micro_batches = [
            self.stacked([table.batch(cell.data.seed, place, size) for cell in self.cells])
            for place in range(step * accumulation, (step + 1) * accumulation)
        ]
        counts_K = [self._per_cell(m.targets_BT != IGNORED) for m in micro_batches]
        supervised_K = torch.stack(counts_K).sum(0)
        return micro_batches, self.base.sent(supervised_K)

    def _per_cell(self, mask_BT: Tensor) -> Tensor:
        return mask_BT.reshape(len(self.cells), -1).sum(1)


LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""The most logits that exist at once, by device type: 64 MB of float32 on a CPU, 1 GB on a GPU."""


def target_losses(
    hidden_Nd: Tensor, targets_N: Tensor, logits: Callable[[Tensor], Tensor], vocabulary: int
) -> Tensor:
    """The negative log-likelihood of every target, in nats, ``[N]`` float32. ``logits``: the frozen
    head, ``[n, d] -> [n, V]``. Gradients reach only ``hidden_Nd``."""
    chunk = max(1, LOGITS.get(hidden_Nd.device.type, LOGITS["cuda"]) // vocabulary)
    return _Chunked.apply(hidden_Nd, targets_N, logits, chunk)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_Nd: Tensor,
        targets_N: Tensor,
        logits: Callable[[Tensor], Tensor],
        chunk: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, gradients = [], []
        for hidden_nd, targets_n in zip(
            hidden_Nd.split(chunk), targets_N.split(chunk), strict=True
        ):
            with torch.set_grad_enabled(wanted):
                hidden_nd = hidden_nd.detach().requires_grad_(wanted)
                nll_n = cross_entropy(logits(hidden_nd).float(), targets_n, reduction="none")
                if wanted:
                    gradients += torch.autograd.grad(nll_n.sum(), hidden_nd)
            losses.append(nll_n.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, dnll_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_Nd,) = ctx.saved_tensors
        return gradient_Nd * dnll_N.unsqueeze(1).to(gradient_Nd.dtype), None, None, None
