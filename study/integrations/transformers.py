"""Per-layer norms of a PEFT run under the transformers Trainer or TRL's trainers::

    trainer = SFTTrainer(model=peft_model, args=..., train_dataset=...)
    trainer.add_callback(NormProbeCallback(trainer, "results/mine"))
    trainer.train()                        # then: study analyze results/mine

Each active adapter of the run becomes a cell of the study. Runs of several ranks into one folder
are thus a rank sweep. It measures:

- *micro-batches* around ``trainer.training_step``, forward and backward together, because callbacks
  have no event for the forward pass. Hooks on the layers exist only in a probed step, from the
  first call of the model with gradients on. Generation and reference passes are thus left out;
- *gradients* before ``accelerator.clip_grad_norm_``. ``on_pre_optimizer_step`` is after clipping,
  and a hook on the parameters would see single micro-batches instead of their sum. The Trainer
  calls it once per step, with an infinite norm if it does not clip. If it is not called, nothing is
  clipped, and ``on_pre_optimizer_step`` sees the same gradients;
- *updates* in ``on_optimizer_step``, between the step and ``zero_grad``.

The callback draws no random numbers and changes no tensor: losses are bit for bit those of a run
without it. Row ``step = s`` has the weights after s updates. There is no row after the last update,
because the Trainer has no batch for it.
"""

import math
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from study.config import ProbesConfig, chosen, probe_steps
from study.errors import StudyError
from study.integrations.runs import init_of, now, open_cell
from study.probes import NormProbe, active_adapters
from study.store import CellWriter, rows_of
from study.training.devices import peak_memory_gb
from study.training.stuck import StuckCheck
from study.vocabulary.quantities import MODEL_WIDE, SITES, STATS, USUAL

SHOWN = (("adapter_grad", "norm"), ("adapter_update", "norm"), ("adapter_update", "descent"))
"""The (site, stat) pairs of the whole model that the console shows."""
TRACKED = (
    ("adapter_grad", "norm"),
    ("adapter_update", "norm"),
    ("adapter_out", "rms"),
    ("layer_out_grad", "rms"),
)
"""The (site, stat) pairs of every layer that a tracker gets. The tables have all of them."""


class NormProbeCallback(TrainerCallback):
    """Measures the layers of every adapter that ``trainer`` trains.

    - ``results``: the study's folder, ``RESULTS/NAME``;
    - ``steps`` or ``every``, ``sites``, ``stats``, ``tokens``: as under ``probes`` of
      ``study train``. Steps are optimizer steps, with any number of micro-batches;
    - ``data``: the name of the data in the tables; default: a fingerprint.

    At a probed step, the trackers of ``report_to`` get a number per layer and site, and the console
    gets three numbers of the whole model.

    Raises :class:`StudyError` for a model without LoRA and where measurements would be wrong: fp16,
    because the loss scale is in every gradient; several processes or GPUs, because each sees a part
    of the step; compiled models, because their layers run no hooks. ``train()`` raises it if a
    fused kernel bypasses the hooks of a layer that is trained.
    """

    def __init__(
        self,
        trainer: Trainer,
        results: str | Path = "results/trainer",
        *,
        steps: str | list[int] | None = "log",
        every: int | None = None,
        sites: str | list[str] = "all",
        stats: str | list[str] = "all",
        tokens: int = 128,
        data: str | None = None,
    ) -> None:
        _check(trainer)
        self.trainer, self.results, self.data = trainer, Path(results), data
        self.asked = ProbesConfig(
            every=every, steps=None if every else steps, sites=sites, stats=stats, tokens=tokens
        )
        options: dict[str, Any] = {
            "sites": chosen("sites", sites, SITES),
            "stats": chosen("stats", stats, STATS, USUAL),
            "tokens": tokens,
        }
        names = active_adapters(trainer.model)
        self.probes = {name: NormProbe(trainer.model, adapter=name, **options) for name in names}
        if not self.probes:
            NormProbe(trainer.model)  # raises, and names the layers that the model has
        _warn_of_variants(self.probes)
        self._inits = {
            name: init_of(trainer.model, name, probe) for name, probe in self.probes.items()
        }
        self._reporters = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
        self._writers: list[CellWriter] = []
        self._patches = ExitStack()
        self._probed_at: frozenset[int] = frozenset()
        self._evaluated: dict[str, float] = {}
        self._probing = False
        self._start_step(0)

    # Events of the Trainer, in order.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the cells and start measuring."""
        self._close("failed", error="the run was stopped and started again")
        for name, probe in self.probes.items():
            config, writer = open_cell(
                self.trainer, self.results, name, self._inits[name], probe, self.asked, self.data
            )
            self._writers.append(writer)
            self._probed_at = frozenset(probe_steps(config))
        self._weight = next(iter(self.probes.values())).layers[0].pairs()[0].A_RD
        before = rows_of(self._writers[0].folder, "metrics")  # of a checkpoint
        self._tokens = int(before["tokens"].max()) if len(before) else 0
        self._stuck = StuckCheck()
        for row in before.to_dict("records"):
            self._stuck.add({str(name): value for name, value in row.items()})
        self._began = time.perf_counter()
        self._diverged_step: int | None = None
        accelerator = self.trainer.accelerator
        self._training_step, self._clip = self.trainer.training_step, accelerator.clip_grad_norm_
        for owner, name, watched in (
            (self.trainer, "training_step", self._watched_training_step),
            (accelerator, "clip_grad_norm_", self._watched_clip),
        ):
            self._patches.enter_context(_replaced(owner, name, watched))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the row of a new optimizer step, with the learning rate of its update."""
        self._start_step(state.global_step)
        groups = self.trainer.optimizer.param_groups
        lr = next(
            group["lr"]
            for group in groups
            if any(weight is self._weight for weight in group["params"])
        )
        self._row |= {"lr": float(lr), **self._evaluated}
        self._evaluated = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure weights and gradients, unless they were measured before clipping."""
        self._before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the updates, write the rows of the probes and send them to the trackers."""
        if not self._probing:
            return
        tables = []
        for probe, writer in zip(self.probes.values(), self._writers, strict=True):
            probe.after_update([self._row.get("clip_factor", 1.0)])
            table = probe.collect(self._step)[0]
            try:
                _check_hooks_ran(table)
            except StudyError as error:
                self._close("failed", error=str(error))
                raise
            writer.append("probes", table)
            tables.append(table)
        self._probing = False
        self._track(tables, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the step's row of ``metrics``."""
        loss = float(torch.stack(self._losses).sum()) if self._losses else math.nan
        self._tokens += int(sum(self._real_tokens))
        if self._diverged_step is None and not math.isfinite(
            loss + self._row.get("grad_norm", 0.0)
        ):
            self._diverged_step = self._step
        self._write_row(self._row | {"loss": loss, "tokens": self._tokens})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any
    ) -> None:
        """Keep the held-out loss for the next row, which has the same weights."""
        if "eval_loss" in metrics:
            self._evaluated = {"eval_loss": float(metrics["eval_loss"])}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the cells."""
        if self._evaluated:
            self._write_row({"step": state.global_step, "tokens": self._tokens, **self._evaluated})
        fields = {"steps_done": state.global_step, "seconds": time.perf_counter() - self._began}
        status = "complete"
        if self._diverged_step is not None:
            status, fields["diverged_step"] = "diverged", self._diverged_step
        elif self._stuck.step is not None:
            status, fields["stuck_step"] = "stuck", self._stuck.step
        self._close(
            status,
            finished=now(),
            peak_memory_gb=peak_memory_gb(args.device),
            **fields,
        )

    # Passes and clipping, which have no event.

    def _start_step(self, step: int) -> None:
        self._step, self._row = step, {"step": float(step)}
        self._probing, self._measured = step in self._probed_at, False
        self._losses: list[Tensor] = []
        self._real_tokens: list[Tensor | int] = []

    def _watched_training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        self._real_tokens.append(_count_tokens(inputs))  # first: the pass may change inputs
        with self._watching():
            loss = self._training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss.detach().float())
        return loss

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Around one micro-batch. Probes watch from the model's first call with gradients on."""
        with ExitStack() as watches:

            def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if self._probing and torch.is_grad_enabled():
                    mask = kwargs.get("attention_mask")
                    real_BT = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
                    watches.close()
                    for probe in self.probes.values():
                        watches.enter_context(probe.watch(real_BT))

            hook = self.trainer.model.register_forward_pre_hook(begin, with_kwargs=True)
            try:
                yield
            finally:
                hook.remove()

    def _watched_clip(self, parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        self._before_update()
        norm = self._clip(parameters, max_norm, *args, **kwargs)
        if norm is not None:
            self._row["grad_norm"] = float(norm)
            # The factor of torch's clip_grad_norm_.
            self._row["clip_factor"] = min(1.0, max_norm / (float(norm) + 1e-6))
        return norm

    def _before_update(self) -> None:
        if self._probing and not self._measured:
            self._measured = True
            for probe in self.probes.values():
                probe.before_update()

    # Output.

    def _write_row(self, row: dict[str, float]) -> None:
        self._stuck.add(row)
        table = pd.DataFrame([row | {"seconds": time.perf_counter() - self._began}])
        for writer in self._writers:
            writer.append("metrics", table)

    def _track(self, tables: list[pd.DataFrame], state: Any, control: Any) -> None:
        """Send three numbers to the console and ``trainer_state.json``, all layers to trackers."""
        whole: dict[str, float] = {}
        layers: dict[str, float] = {}
        for name, table in zip(self.probes, tables, strict=True):
            prefix = "probe" if len(self.probes) == 1 else f"probe/{name}"
            for shown, numbers in ((SHOWN, whole), (TRACKED, layers)):
                for site, stat in shown:
                    rows = table[
                        (table["site"] == site)
                        & ((table["layer"] == MODEL_WIDE) == (shown is SHOWN))
                    ]
                    for layer, value in zip(rows["layer"], rows.get(stat, ()), strict=False):
                        of_layer = "" if layer == MODEL_WIDE else f"/{layer}"
                        numbers[f"{prefix}/{site}_{stat}{of_layer}"] = float(value)
        if whole:
            # Not self.trainer.log: TRL's method resets its running means at every call.
            Trainer.log(self.trainer, whole)
        for callback in self.trainer.callback_handler.callbacks:
            if self._reporters and isinstance(callback, self._reporters):
                callback.on_log(
                    self.trainer.args, state, control, model=self.trainer.model, logs=dict(layers)
                )

    def _close(self, status: str, **fields: Any) -> None:
        self._patches.close()
        run = secrets.token_hex(6)  # its cells share the seconds
        for writer in self._writers:
            writer.close(status, fold=run, **fields)
        self._writers = []


def _check(trainer: Trainer) -> None:
    """Refuse a trainer whose measurements would be wrong."""
    args = trainer.args
    if args.fp16:
        raise StudyError(
            "fp16=True scales the loss and every gradient: train in bf16 or float32 to probe"
        )
    if args.world_size > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise StudyError(
            f"{args.world_size} processes (DDP, FSDP, DeepSpeed) each see a part of every step: "
            "probe a run in one process"
        )
    if args.n_gpu > 1:
        raise StudyError(
            f"the Trainer would use {args.n_gpu} GPUs, each for a part of every step: "
            "set CUDA_VISIBLE_DEVICES=0"
        )
    if args.torch_compile:
        raise StudyError("torch_compile=True skips the hooks of layers: set it to False to probe")
    if getattr(trainer.model.config, "is_encoder_decoder", False):
        raise StudyError("encoder-decoder models cannot be probed: use a decoder")


def _warn_of_variants(probes: Mapping[str, NormProbe]) -> None:
    """Warn of layers whose adapter is not plain LoRA, such as DoRA's."""
    for name, probe in probes.items():
        if variants := probe.variants:
            layer, variant = next(iter(variants.items()))
            warnings.warn(
                f"adapter {name!r}: {len(variants)} layers ({layer}, ...) are {variant}: their "
                "output is not W0 x + gamma B A x, so they have no adapter_out, adapter_in_grad "
                "and delta_w",
                stacklevel=3,
            )


def _check_hooks_ran(table: pd.DataFrame) -> None:
    """Raises :class:`StudyError` if a layer has a gradient but its hooks did not run."""
    by_site = {site: set(rows["layer"]) for site, rows in table.groupby("site", observed=True)}
    bypassed = sorted(
        by_site.get("A_grad", set()) - by_site.get("adapter_in", by_site.get("A_grad", set()))
    )
    if bypassed:
        raise StudyError(
            f"the hooks of {len(bypassed)} trained layers did not run ({bypassed[0]}, ...): a "
            "fused LoRA kernel bypasses them. In Axolotl set lora_mlp_kernel, lora_qkv_kernel and "
            "lora_o_kernel to false; elsewhere turn the kernel off, or measure "
            'sites=["A", "B", "adapter_grad", "adapter_update"]'
        )


def _count_tokens(inputs: Mapping[str, Any]) -> Tensor | int:
    """Real tokens of a micro-batch, on its device; 0 if the inputs have unknown names."""
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.sum()
    return ids.numel() if isinstance(ids, Tensor) else 0


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set ``owner.name`` to ``value`` inside; restored on exit."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
