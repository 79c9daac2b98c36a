"""The training loop: the cells of one fold over one frozen base, in lockstep.

A fold is K cells that share each forward pass through the base. Every cell has its own batches,
loss, clipping, optimizer and schedule, so a folded cell trains as it would alone.

The host never waits for a device in a plain step. It sends the device the work of a step, and reads
the numbers of the step before while the device computes. On a CPU they are ready at once.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor

from study.adapters import adapted, resolve_targets
from study.adapters.bank import LoraBank
from study.adapters.infinite import FullBank, InfiniteRankBank
from study.config import AdapterConfig, CellConfig, eval_steps, probe_steps
from study.data.batches import Corpus
from study.models import FrozenBase
from study.models.base import CompiledBlocks, recomputing
from study.store.checkpoints import Checkpoint
from study.training.checkpoint import start
from study.training.fold import Fold, adapter_spec, contraction_of
from study.training.measuring import (
    exact_matches,
    heldout_losses,
    last_tables,
    make_probe,
    probe_other_batches,
    sent_by,
)
from study.training.results import CellStep, Numbers, results
from study.training.sharding import ALONE, Processes
from study.vocabulary.quantities import TRAIN
from study.vocabulary.scaling import FULL
from study.vocabulary.thresholds import LAST_PREDICTED_STEP


def train(
    base: FrozenBase,
    corpus: Corpus,
    cells: Sequence[CellConfig],
    resume: Sequence[Checkpoint] = (),
    world: Processes = ALONE,
) -> Generator[list[CellStep | None], None, None]:
    """Train a fold. Yields at each step s = 0 ... ``train.steps`` one result per cell.

    A result is None once its cell has diverged. Row s is measured with the weights after s updates,
    on the batch of step s; the last step only measures. Numbers may still be on their way to the
    host (:attr:`CellStep.arrived`).

    ``cells``: ordered by rank; they may differ in adapter, optimizer, seeds, clipping and schedule.
    One of infinite rank trains alone. ``resume``: the state of every cell before the same step;
    :class:`study.errors.StudyError` if it is of another cell. ``world``: the processes that train
    the fold, which all make this call. The adapters are removed when the generator ends or is
    closed.
    """
    with _folded(base, corpus, cells, world) as fold:
        yield from _steps(fold, start(fold, resume))


def _steps(fold: Fold, begun: int) -> Generator[list[CellStep | None], None, None]:
    """The steps of a fold from ``begun`` on: the algorithm."""
    shared = fold.cells[0]
    last, probed_at, evaluated_at = shared.train.steps, probe_steps(shared), eval_steps(shared)
    earlier: Numbers | None = None
    for step in range(begun, last + 1):
        fold.step = step
        probe = make_probe(fold, TRAIN) if step in probed_at else None
        sent, first_K = probe_other_batches(fold, step) if step in probed_at else ([], None)
        metrics: dict[str, Sequence[float] | Tensor] = {"lr": fold.learning_rates()}
        examples: list[Tensor] | None = None
        if step in evaluated_at:
            examples = [] if step == last and shared.train.example_losses else None
            metrics["eval_loss"] = heldout_losses(fold, first_K, examples)
            if shared.train.answer_tokens:
                metrics["exact_match"] = exact_matches(fold, shared.train.answer_tokens)
        if step < last or probe:
            metrics["loss"] = loss_K = fold.backward(step, probe)
            metrics["grad_norm"] = norm_K = fold.grad_norms()
            fold.mark_diverged(loss_K, norm_K)
        if probe:
            probe.before_update(total=fold.world.sum)
        if step < last:
            metrics["clip_factor"] = factor_K = fold.update()
            if probe:
                probe.after_update(factor_K.float())
                if "adapter_update" in probe.sites and step <= LAST_PREDICTED_STEP:
                    metrics["loss_after"] = fold.losses_after(step)
        if probe:
            sent.insert(0, sent_by(fold, probe, step, TRAIN))
        tables_K = last_tables(fold, examples) if step == last else [{} for _ in fold.cells]
        rows_K = results(fold, step, metrics, sent, tables_K)
        # Read now, while the device computes this step.
        alive_K = earlier.alive_K if earlier else [True] * len(fold.cells)
        if not any(alive_K):
            return
        yield [row if alive else None for row, alive in zip(rows_K, alive_K, strict=True)]
        earlier = rows_K[0].numbers
        # Processes end at the same step, but their numbers may arrive at different times.
        if fold.world.size == 1 and earlier.arrived and not any(earlier.alive_K):
            return


def _bank_type(adapter: AdapterConfig) -> type[LoraBank]:
    if adapter.scaling == FULL:
        return FullBank
    return InfiniteRankBank if math.isinf(adapter.rank) else LoraBank


@contextmanager
def _folded(
    base: FrozenBase, corpus: Corpus, cells: Sequence[CellConfig], world: Processes
) -> Iterator[Fold]:
    base, shared = world.copy_to_divide(base), cells[0]
    layers = resolve_targets(base.card.shapes, shared.adapter.targets)
    bank_type = _bank_type(shared.adapter)
    specs, form = [adapter_spec(cell) for cell in cells], contraction_of(shared, corpus)
    with (
        recomputing(base) if shared.train.checkpointing else nullcontext(),
        adapted(base.model, layers, specs, bank_type, form, lambda: world.divide(base)) as banks,
    ):
        fold = Fold(base, corpus, cells, banks, world)
        if shared.pack.compile:
            ranks = [factor for bank in banks for factor in bank.rank_dimensions()]
            fold.compiled = CompiledBlocks(base, layers, ranks)
        yield fold
