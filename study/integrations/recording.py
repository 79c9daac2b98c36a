"""``study.record``: a loop over PEFT as cells of a study. Hooks find passes and updates."""

import math
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from study.config import (
    UNKNOWN_STEPS,
    CellConfig,
    DataConfig,
    ProbesConfig,
    TrainConfig,
    probe_steps,
)
from study.errors import StudyError, one_line, short
from study.integrations.passes import Hook, LoopPasses, joint_norm, norms_of_gradients, together
from study.integrations.runs import (
    Adapter,
    Loop,
    bypassed,
    check_model,
    groups_of,
    number,
    open_cell,
    plain_optimizer,
    read_adapters,
)
from study.store import CellWriter, now, rows_of
from study.training.devices import peak_memory_gb
from study.training.sharding import ALONE, Processes
from study.training.stuck import StuckCheck
from study.vocabulary.quantities import BACKWARD, GRADIENTS, UNDIVIDED, UPDATES, WEIGHTS

ROWS = 10
"""The most rows that several processes keep before they add up their losses."""
LINEAR = ["mean_abs", "rms", "m4", "max_abs", "norm"]
"""The statistics that a factor of a tensor multiplies."""
LARGEST_SEED = 2**32 - 1
"""The largest seed of transformers and Lightning. torch draws a larger one if none is set."""
UNSEEDED = "No seed was set: the draw of the init is unknown, and the run can't be repeated."


OTHER_GRADIENTS = (
    "Gradients changed between the last backward pass and an update, not all by one factor (as in "
    "clipping per example or by value): loss, tokens and gradients are those of the backward pass."
)
OTHER_WEIGHTS = (
    "Weights changed between a forward pass and its update (as in SAM): loss and gradients are "
    "those at other weights than the update's."
)


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of a recording, called in a user's step: any error becomes a StudyError, and its
    traceback is kept in ``error.log``."""

    @wraps(method)
    def call(recording: "Recording", *args: Any) -> Any:
        try:
            return method(recording, *args)
        except StudyError:
            raise
        except Exception as error:
            recording.log(error)
            raise StudyError(f"the recording failed ({one_line(error)})") from error

    return call


class Recording:
    """Writes a cell for every active adapter of ``model`` while ``optimizer`` trains it.

    Row ``step = s`` has the weights after s updates and the batch of the next update, so there is
    no row after the last update. ``describe``: called at the first update, for facts that model and
    optimizer lack. ``adapters``: if they had to be read earlier. See :func:`record`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        describe: Callable[["Recording"], Loop],
        probes: ProbesConfig,
        *,
        adapters: Sequence[Adapter] = (),
        start: int = 0,
        total: int | None = None,
    ) -> None:
        self.model, self._wrapper = check_model(model), model
        self.optimizer = plain_optimizer(optimizer)
        self.adapters = adapters or read_adapters(self.model, probes, resumed=start > 0)
        self._pair = self.adapters[0].pairs[0]
        for adapter in self.adapters:
            for pair in adapter.pairs:
                groups_of(self.optimizer, pair, adapter.name)
        self._describe, self._asked = describe, probes
        train = TrainConfig(steps=UNKNOWN_STEPS if total is None else total)
        self._probed_at = frozenset(probe_steps(CellConfig(train=train, probes=probes)))
        self.step, self._total = start, total
        types = {weight.dtype for weight in self.model.parameters()}
        self.precision = "bf16" if torch.bfloat16 in types else "float32"
        self.tables: list[pd.DataFrame] = []
        """The measurements of the newest update, a frame for each adapter; may be empty."""
        weights = [w for group in self.optimizer.param_groups for w in group["params"]]
        probed = {id(w) for adapter in self.adapters for pair in adapter.pairs for w in pair[:2]}
        trained = {id(weight) for weight in weights} - probed
        named = self.model.named_parameters()
        if others := [name for name, w in named if id(w) in trained and w.requires_grad]:
            said = f"the optimizer also trains {len(others)} other weights ({others[0]}, ...)"
            warnings.warn(f"{said}: grad_norm and clip_factor are of all weights", stacklevel=3)
        self.passes = LoopPasses(self.model, weights)
        self._hooks = ExitStack()
        # Known at the first update: the processes, and the sequences of the first pass in all.
        self.world = ALONE
        self.sequences = 0
        self._is_open = False
        self._writers: list[CellWriter] = []
        self._pending: list[dict[str, Tensor | float]] = []
        self._next: dict[str, float] = {}
        self._stuck, self._tokens = StuckCheck(), 0
        self._diverged_step: int | None = None

    @property
    def group(self) -> Mapping[str, Any]:
        return groups_of(self.optimizer, self._pair, self.adapters[0].name)[0]

    def loss(self, loss: Tensor | float) -> None:
        """Record the loss of a micro-batch before its backward pass, unless the model returns
        it."""
        self.passes.loss(loss)

    def heldout(self, loss: float) -> None:
        self._next["eval_loss"] = float(loss)

    def gradients(self) -> None:
        """Use the current gradients as those before clipping, in a loop that divides ``.grad``."""
        self.passes.take_gradients()

    def begin(self) -> Self:
        if self._is_open:
            raise StudyError("this recording has ended: put one `with` around all epochs")
        hooks = self.optimizer._optimizer_step_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), Recording) for hook in hooks):
            raise StudyError("this optimizer is recorded already: record once, around the loop")
        self.passes.attach(self._hooks)
        layer = self.adapters[0].probe.layers[0].module
        for hook in (
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            # A loop resumes from this state. Not all processes may save it.
            self.optimizer.register_state_dict_pre_hook(lambda _: self.sync(self.world.size == 1)),
            layer.register_forward_pre_hook(Hook(self._read_precision)),
        ):
            self._hooks.callback(hook.remove)
        self._began = time.perf_counter()
        self._begin_step()
        return self

    def end(self, status: str = "", **fields: Any) -> None:
        """Stop watching and close the cells. The default ``status`` follows from the numbers."""
        self._hooks.close()
        if not self._is_open and not status:
            why = "the recorded optimizer made no step with a gradient"
            raise StudyError(f"{why}: give the one that the loop inside the `with` block steps")
        if not status or self.world.size == 1:  # after an error, other processes may be elsewhere
            self._flush()
        if not self._writers:
            return
        if self._next:
            self._write_row({"step": self.step, "tokens": self._tokens, **self._next})
        fields = {"steps_done": self.step, "seconds": self._seconds(), **fields}
        if not status and self._diverged_step is not None:
            status, fields["diverged_step"] = "diverged", self._diverged_step
        elif not status and self._stuck.step is not None:
            status, fields["stuck_step"] = "stuck", self._stuck.step
        ended = {
            "finished": now(),
            "peak_memory_gb": peak_memory_gb(self._pair.A_RD.device),
            "fold": secrets.token_hex(6),  # the cells of a run share its seconds
        }
        writers, self._writers = self._writers, []
        for writer in writers:
            if status == "interrupted":
                writer.interrupt(**fields)
                continue
            config = writer.record["config"]
            if self._total is None and status != "failed":
                config = config | {"train": config["train"] | {"steps": self.step}}
            writer.close(status or "complete", config=config, **ended, **fields)

    def sync(self, of_all: bool = True) -> None:
        """Put all rows on disk, in all processes, before the loop saves a checkpoint."""
        if of_all:
            self._flush()
        for writer in self._writers:
            writer.sync()

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self.end()
        elif isinstance(error, StudyError):
            self.end("failed", error=str(error))
        elif isinstance(error, Exception):
            self.log(error)
            self.end("failed", error=one_line(error))
        else:  # Ctrl-C, or the end of the process
            self.end("interrupted")

    def log(self, error: Exception) -> None:
        """Keep the traceback of ``error`` with each cell."""
        for writer in self._writers:
            writer.write_error_log(error)

    def _begin_step(self) -> None:
        self._probing, self._updating = self.step in self._probed_at, False
        self._nested, self._used = 0, 0
        self.passes.begin([a.probe for a in self.adapters] if self._probing else [])

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Measure before the update: now or, if a closure does the backward pass, after it."""
        self._weights = self.passes.norms_of_weights()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._before_update()
            return None

        def watched() -> Any:
            result = closure()
            self._before_update()
            return result

        return args[:1], {**kwargs, "closure": watched}

    @guarded
    @torch.no_grad()
    def _before_update(self) -> None:
        """The row of this update. Probes measure the weights, and the gradients before clipping."""
        self.passes.end_watch()
        norms = norms_of_gradients(self.passes.weights)
        if (clipped := joint_norm(norms)) is None:
            return  # without gradients the optimizer moves nothing
        if self._updating and self.passes.backwards == self._used:
            self._nested += (
                1  # step() of a class that calls that of its parent, which has the hooks
            )
            return
        if self._updating:
            kind = type(self.optimizer).__name__
            raise StudyError(f"{kind} evaluates its closure several times: use another optimizer")
        if not (self.passes.backwards and self.passes.passes) and not self._is_open:
            why = f"step {self.step} of the optimizer came without a backward pass of the model"
            raise StudyError(f"{why}: give the model that the loop calls, and its optimizer")
        if not self._is_open:
            self._open(together(norms))
        if self.step == self._total:  # a Trainer resumed after its last step makes one more
            self._say(f"Updates after the {self._total} of the whole run are not recorded.")
            return
        self._updating, self._used = True, self.passes.backwards
        if self.passes.norm is None:  # of gradients that the loop has set to 0
            self.passes.take_gradients()
        norm, lr = self.passes.norm, number(self.group["lr"])
        assert norm is not None
        self._row: dict[str, Tensor | float] = {"step": self.step, "lr": lr, **self._next}
        tokens = sum(one.tokens for one in self.passes.passes)
        self._row |= {"grad_norm": norm, "clipped": clipped, "tokens": tokens}
        self._row["other_gradients"] = self.passes.are_other_gradients(norms)
        self._row["other_weights"] = self.passes.had_other_weights(self._weights)
        self._next = {}
        if self._probing and not lr:
            why = f"The learning rate of step {self.step} is 0 (warm-up)"
            self._say(f"{why}: its update and its descent are 0. Probe a later step for them.")
        if (loss := self.passes.step_loss) is not None:
            self._row["loss"] = loss
        elif not self._pending:
            why = "no loss was seen"
            warnings.warn(f"{why}: call recording.loss(loss) before loss.backward()", stacklevel=4)
        if self._probing:
            for adapter, gradients in zip(self.adapters, self.passes.gradients, strict=True):
                adapter.probe.before_update(gradients, self.world.sum)

    @guarded
    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        """Measure the update, and write the row of the step before: its numbers have arrived."""
        if self._nested:
            self._nested -= 1
            return
        self.tables = []
        if self._updating:  # there was a gradient
            if self._probing:
                self._probe_update()
            if self.world.size == 1 or self._probing or len(self._pending) == ROWS:
                self._flush()
            self._pending.append(self._row | {"seconds": self._seconds()})
            self.step += 1
        self._begin_step()

    def _probe_update(self) -> None:
        elsewhere = (*WEIGHTS, *GRADIENTS, *UPDATES)
        if self.passes.are_divided:
            elsewhere = ("delta_w", *UNDIVIDED)
        for index, adapter in enumerate(self.adapters):
            adapter.probe.after_update()
            own = elsewhere if self.world.number else ()
            [table] = adapter.probe.collect(self.step, added=self.world.added, elsewhere=own)
            if self.world.number:
                continue
            # Each process has the gradients of its own mean loss.
            factor = 1.0 if self.passes.rescaled is None else float(self.passes.rescaled)
            columns = table.columns.intersection(LINEAR)
            table.loc[table["site"].isin(BACKWARD), columns] *= factor / self.world.size
            if self.passes.passes and (why := bypassed(table)):
                self.end("failed", error=why)
                raise StudyError(why)
            self._writers[index].append("probes", table)
            self.tables.append(table)

    def _read_precision(self, module: nn.Module, _: Any) -> None:
        """Of the newest pass, inside the autocast of the loop or of accelerate. The policy of FSDP2
        converts the weights of a module while it runs."""
        if any(weight.dtype == torch.bfloat16 for weight in module.parameters()):
            self.precision = "bf16"
        device = self._pair.A_RD.device.type
        if not torch.is_autocast_enabled(device):
            return
        dtype = torch.get_autocast_dtype(device)
        if dtype == torch.float16:
            raise StudyError("fp16 scales the loss and every gradient: record in bf16 or float32")
        self.precision = "bf16" if dtype == torch.bfloat16 else self.precision

    def _say(self, sentence: str) -> None:
        warnings.warn(sentence, stacklevel=5)
        for writer in self._writers:
            if sentence not in (before := writer.record["training_note"]):
                writer.record["training_note"] = f"{before} {sentence}".strip()

    def _open(self, clipped_W: Tensor) -> None:
        if getattr(getattr(self._wrapper, "_join_config", None), "enable", False):
            why = "model.join() lets processes make different numbers of updates"
            raise StudyError(f"{why}: give each process as many batches, and leave it out")
        device, passes = self._pair.A_RD.device, self.passes.passes
        self._is_open, self.world = True, Processes(device)
        counts = int(sum(one.content for one in passes)), passes[0].sequences
        content, self.sequences = self.world.sum(torch.tensor(counts, device=device)).tolist()
        self._check_loss_and_gradients(clipped_W)
        if self.world.number:
            return
        loop = self._describe(self)
        if self.world.size > 1:
            how = f"{self.world.size} processes ({'FSDP2' if self.passes.are_divided else 'DDP'})"
            loop = replace(loop, trained_by=f"{loop.trained_by} on {how}")
        parts = self.model, self.optimizer, self._asked, self.step, content
        opened = [open_cell(loop, adapter, *parts) for adapter in self.adapters]
        self._writers = [writer for writer, _ in opened]
        before = rows_of(self._writers[0].folder, "metrics")  # of a checkpoint
        self._tokens = int(before["tokens"].max()) if len(before) else 0
        last = int(before["step"].max()) if len(before) else -1
        if opened[0][1] and last < self.step - 1:
            missing = f"The rows of steps {last + 1} to {self.step - 1} are missing"
            said = f"{missing}: the run was killed before they were on disk."
            if self.world.size > 1:
                said += " Call recording.sync() in all processes before each checkpoint."
            self._say(said)
        for row in before.to_dict("records"):
            self._stuck.add({str(name): value for name, value in row.items()})

    def _check_loss_and_gradients(self, clipped_W: Tensor) -> None:
        """Of the first update. Processes may weight their losses by their tokens. ``clipped_W``:
        the norms of the gradients that the update gets. Clipping may have made that of all equal.
        """
        norm, weights = self.passes.norm, self.passes.loss_weights
        if norm is None or self.passes.are_divided:
            norm = torch.zeros((), device=self._pair.A_RD.device)
        total = torch.full_like(norm, sum(weights))
        clipped_W = clipped_W.to(norm.device)
        norms = torch.stack([norm, clipped_W.sum(), clipped_W.max()])
        total, extremes = self.world.added(total, torch.stack([norms, -norms]))
        most, least = extremes[0], -extremes[1]
        differ = most - least > 1e-3 * most
        scale = float(total) / self.world.size
        usual = any(math.isclose(scale, each, rel_tol=0.01) for each in (1, len(weights)))
        if weights and not usual:
            raise StudyError(
                f"the loop multiplies the loss by {scale:g}: call recording.loss(...) with the "
                "loss whose backward() it calls. If it divides .grad again, as GradScaler does, "
                "call recording.gradients() after that and before it clips"
            )
        if not differ[0]:
            return
        if not differ[1:].any():
            why = f"the loop combines the gradients of {self.world.size} processes itself"
            raise StudyError(
                f"{why}: average them, and call recording.gradients() then, before it clips"
            )
        why = f"the gradients of {self.world.size} processes differ"
        raise StudyError(f"{why}: train one model, in DDP or FSDP2")

    def _flush(self) -> None:
        """Write the rows that wait, with one copy from the device and one sum over processes."""
        rows, self._pending = self._pending, []
        if not rows:
            return
        names = "loss", "tokens", "grad_norm", "clipped", "other_gradients", "other_weights"
        device = self._pair.A_RD.device
        each = [torch.as_tensor(row.get(n, math.nan)).to(device) for row in rows for n in names]
        local = torch.stack([number.double() for number in each]).view(len(rows), -1)
        local[:, 2:4].square_()
        # DDP and FSDP take the mean of gradients over processes. FSDP divides them too.
        mean = [0] if self.passes.are_divided else [0, 2, 3]
        local[:, mean] /= self.world.size
        for row, numbers in zip(rows, self.world.sum(local).tolist(), strict=True):
            loss, tokens, square, clipped, *others = numbers
            for is_other, sentence in zip(others, (OTHER_GRADIENTS, OTHER_WEIGHTS), strict=True):
                if is_other:
                    self._say(sentence)
            self._tokens += int(tokens)
            factor = math.sqrt(clipped / square) if square else math.nan
            row |= {"loss": loss} if "loss" in row else {}
            row |= {"tokens": self._tokens, "grad_norm": math.sqrt(square)}
            row |= {"clip_factor": factor if math.isfinite(factor) else 1.0}
            plain = {name: float(value) for name, value in row.items() if name not in names[3:]}
            if math.isfinite(plain.get("loss", 0.0) + plain["grad_norm"]):
                self._diverged_step = None  # a loop may know what to do with NaN
            elif self._diverged_step is None:
                self._diverged_step = int(plain["step"])
            self._write_row(plain)

    def _write_row(self, row: Mapping[str, float]) -> None:
        self._stuck.add(row)
        table = pd.DataFrame([{"seconds": self._seconds(), **row}])
        for writer in self._writers:
            writer.append("metrics", table)

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


def record(
    results: str | Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    steps: str | Sequence[int] | None = "log",
    every: int | None = None,
    sites: str | list[str] = "all",
    stats: str | list[str] = "all",
    tokens: int = 128,
    seed: int | None = None,
    data: str = "data of a script",
    start: int = 0,
    total: int | None = None,
    **varies: Any,
) -> Recording:
    """Write the training inside ``with study.record(...):`` as a cell of a study.

    ``model`` is adapted by PEFT, ``optimizer`` trains it; both may be wrapped by accelerate or be
    parts of a LightningModule. The cell's configuration is read from them and from the first step.

    - ``results``: the study's folder, ``RESULTS/NAME``;
    - ``steps`` or ``every``, ``sites``, ``stats``, ``tokens``: when and what to measure, as under
      ``probes`` of ``study train``. Steps are optimizer steps, with any number of micro-batches;
    - ``seed``: of the adapter's init and of the data; default: the one that torch was seeded with;
    - ``start``: the updates made before, in a loop that resumes from a checkpoint;
    - ``total``: the updates of the whole run, if runs of one study may end early;
    - ``varies``: other differences between runs, by name: columns ``run_NAME`` of ``cells``.

    Of several processes (DDP, FSDP2), all make this call, and process 0 writes. Any change of the
    gradients between the last backward pass and the update counts as clipping.
    """
    varies = _plain(varies)
    _check_types(results, model, data)
    asked = _whole_numbers(seed=seed, start=start, total=total, every=every, tokens=tokens)
    seed, total, every = (asked.get(name) for name in ("seed", "total", "every"))
    steps = [steps] if isinstance(steps, int) else steps
    steps = steps if isinstance(steps, str | None) else [*map(number, steps)]
    note = ""
    if seed is None:
        seed, note = (torch.initial_seed(), "") if is_seeded() else (0, UNSEEDED)
    rows = DataConfig(name=data, sequence_length=None, heldout=0, seed=seed)  # type: ignore[arg-type]

    def describe(recording: Recording) -> Loop:
        passes = recording.passes.passes  # of the first step
        train = TrainConfig(
            steps=UNKNOWN_STEPS if total is None else total,
            batch_size=max(1, recording.sequences),
            accumulation=len(passes),
            schedule="scheduled" if "initial_lr" in recording.group else "constant",
            warmup=0,
        )
        run = Path(results), seed, recording.precision
        return Loop(*run, rows, train, "script's own loop", note, varies)

    when: dict[str, Any] = {"every": every, "steps": None if every else steps}
    probes = ProbesConfig(**when, sites=sites, stats=stats, tokens=asked["tokens"])
    return Recording(model, optimizer, describe, probes, start=asked["start"], total=total)


def _check_types(results: Any, model: Any, data: Any) -> None:
    for name, value, kind, words in (
        ("results", results, str | Path, "a folder"),
        ("model", model, nn.Module, "the adapted model"),
        ("data", data, str, "the name of the data as a string"),
    ):
        if not isinstance(value, kind):
            raise StudyError(f"{name} is of type {type(value).__name__}: give {words}")


def _plain(varies: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: number(value) for name, value in varies.items()}
    for name, value in found.items():
        if not isinstance(value, bool | int | float | str | None):
            raise StudyError(f"{name}={short(value)}: give a number, a string or a bool")
    return found


def _whole_numbers(**given: Any) -> dict[str, Any]:
    """The arguments that are not None, as whole numbers of Python."""
    found = {name: number(value) for name, value in given.items() if value is not None}
    for name, value in found.items():
        least = int(name in ("every", "tokens"))
        if not isinstance(value, int) or value < least:
            raise StudyError(f"{name}={short(value)}: give a whole number of at least {least}")
    return found


def is_seeded() -> bool:
    return torch.initial_seed() <= LARGEST_SEED
