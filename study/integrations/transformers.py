"""Per-layer norms of a PEFT run under the transformers Trainer, TRL's included, into our tables::

    trainer = SFTTrainer(model=peft_model, args=..., train_dataset=...)
    trainer.add_callback(NormProbeCallback(trainer, "results/mine"))
    trainer.train()                        # then: study analyze results/mine

The run becomes a cell of the study (one for each adapter that is active), so that runs of several ranks into one folder
are a rank sweep. Where it looks, and why there:

- *micro-batches* around ``trainer.training_step``, forward and backward together: the callbacks have no event for the
  forward pass. Hooks on the layers exist only in a probed step, from the moment that the model is called with gradients
  on, which leaves out generation and reference passes.
- *gradients* in front of ``accelerator.clip_grad_norm_``: ``on_pre_optimizer_step`` comes after clipping, and a hook on
  the parameters would see every micro-batch and not the sum. The Trainer calls it once a step, with an infinite norm
  where it does not clip; where it is not called nothing is clipped and ``on_pre_optimizer_step`` is as good.
- *updates* in ``on_optimizer_step``, between the step and ``zero_grad``.

Nothing is drawn at random and nothing is written to: the losses are those of a run without it, bit for bit. Row
``step = s`` has the weights after s updates; there is no row after the last update, for which the Trainer has no batch.
"""

import math
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
from study.vocabulary.quantities import MODEL_WIDE, SITES, STATS, USUAL

SHOWN = (("adapter_grad", "norm"), ("adapter_update", "norm"), ("adapter_update", "descent"))
"""What the console is shown of the whole model: sites and stats."""
TRACKED = (
    ("adapter_grad", "norm"),
    ("adapter_update", "norm"),
    ("adapter_out", "rms"),
    ("layer_out_grad", "rms"),
)
"""What a tracker is shown of every layer. The tables have every site and stat."""


class NormProbeCallback(TrainerCallback):
    """Measures the layers of every adapter that ``trainer`` trains, into ``results``, a folder ``RESULTS/NAME``.

    ``steps`` or ``every``, ``sites``, ``stats`` and ``tokens`` are those of ``study train``'s ``probes``; steps are
    optimizer steps, however many micro-batches they take. ``data`` names the data in tables; by default a fingerprint.
    At a probed step the trackers of ``report_to`` get a number per layer and site, the console three over the model.

    Raises :class:`StudyError`, one line, for a model without LoRA, and for what can't be measured truly: fp16, whose
    loss scale is in every gradient; several processes or GPUs, each of which sees its share; compiled models, whose
    layers run no hooks. In ``train()`` it raises where a layer is trained but its hooks are bypassed by a fused kernel.
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
            NormProbe(trainer.model)  # says what there is instead
        _name_variants(self.probes)
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

    # The Trainer's events, in their order.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the cells and begin to look."""
        self._close("failed", error="the run was stopped before its end and begun anew")
        for name, probe in self.probes.items():
            config, writer = open_cell(
                self.trainer, self.results, name, self._inits[name], probe, self.asked, self.data
            )
            self._writers.append(writer)
            self._probed_at = frozenset(probe_steps(config))
        self._weight = next(iter(self.probes.values())).layers[0].pairs()[0].A_RD
        seen = rows_of(self._writers[0].folder, "metrics")[
            "tokens"
        ]  # by the part of the run that it is resumed from
        self._tokens = int(seen.max()) if len(seen) else 0
        self._began = time.perf_counter()
        self._diverged_step: int | None = None
        self._training_step, self._clip = (
            self.trainer.training_step,
            self.trainer.accelerator.clip_grad_norm_,
        )
        self._patches.enter_context(
            _replaced(self.trainer, "training_step", self._watched_training_step)
        )
        self._patches.enter_context(
            _replaced(self.trainer.accelerator, "clip_grad_norm_", self._watched_clip)
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A new optimizer step: its row begins with the learning rate of the coming update."""
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
        """Measure weights and gradients, unless that was done in front of clipping."""
        self._before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the updates, write the probes' rows and show them to the trackers."""
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
        """Keep the held-out loss for the row of the weights that it is of."""
        if "eval_loss" in metrics:
            self._evaluated = {"eval_loss": float(metrics["eval_loss"])}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the cells."""
        if self._evaluated:
            self._write_row({"step": state.global_step, "tokens": self._tokens, **self._evaluated})
        fields = {"steps_done": state.global_step, "seconds": time.perf_counter() - self._began}
        if self._diverged_step is not None:
            fields["diverged_step"] = self._diverged_step
        self._close(
            "complete" if self._diverged_step is None else "diverged",
            finished=now(),
            peak_memory_gb=peak_memory_gb(args.device),
            **fields,
        )

    # In between: the passes and the clipping, which have no event.

    def _start_step(self, step: int) -> None:
        self._step, self._row = step, {"step": float(step)}
        self._probing, self._measured = step in self._probed_at, False
        self._losses: list[Tensor] = []
        self._real_tokens: list[Tensor | int] = []

    def _watched_training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        self._real_tokens.append(
            _count_tokens(inputs)
        )  # before the pass, which may take inputs apart
        with self._watching():
            loss = self._training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss.detach().float())
        return loss

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Around one micro-batch; the probes watch from the model's first call with gradients on."""
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
            self._row["clip_factor"] = min(
                1.0, max_norm / (float(norm) + 1e-6)
            )  # as torch's clip_grad_norm_
        return norm

    def _before_update(self) -> None:
        if self._probing and not self._measured:
            self._measured = True
            for probe in self.probes.values():
                probe.before_update()

    # Where the numbers go.

    def _write_row(self, row: dict[str, float]) -> None:
        table = pd.DataFrame([row | {"seconds": time.perf_counter() - self._began}])
        for writer in self._writers:
            writer.append("metrics", table)

    def _track(self, tables: list[pd.DataFrame], state: Any, control: Any) -> None:
        """The console and ``trainer_state.json`` get three numbers, the trackers one a layer and site."""
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
        if whole:  # transformers' own log, not a subclass's: TRL's empties its running means whenever it is called
            Trainer.log(self.trainer, whole)
        for callback in self.trainer.callback_handler.callbacks:
            if self._reporters and isinstance(callback, self._reporters):
                callback.on_log(
                    self.trainer.args, state, control, model=self.trainer.model, logs=dict(layers)
                )

    def _close(self, status: str, **fields: Any) -> None:
        self._patches.close()
        for writer in self._writers:
            writer.close(status, **fields)
        self._writers = []


def _check(trainer: Trainer) -> None:
    """Refuse what would be measured wrongly."""
    args = trainer.args
    if args.fp16:
        raise StudyError(
            "fp16=True scales the loss, and with it every gradient: train in bf16 or float32 to probe"
        )
    if args.world_size > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise StudyError(
            f"{args.world_size} processes (DDP, FSDP, DeepSpeed) each see a share of every step: "
            "probe a run in one process"
        )
    if args.n_gpu > 1:
        raise StudyError(
            f"the Trainer would use {args.n_gpu} GPUs, each for a share: set CUDA_VISIBLE_DEVICES=0"
        )
    if args.torch_compile:
        raise StudyError(
            "torch_compile=True leaves out the hooks of layers: set it to False to probe"
        )
    if getattr(trainer.model.config, "is_encoder_decoder", False):
        raise StudyError("an encoder-decoder has two kinds of tokens: only decoders can be probed")


def _name_variants(probes: Mapping[str, NormProbe]) -> None:
    for name, probe in probes.items():
        if variants := probe.variants:
            layer, variant = next(iter(variants.items()))
            warnings.warn(
                f"adapter {name!r}: {len(variants)} layers ({layer}, ...) are {variant}, whose output is not "
                "W0 x + gamma B A x: they have no adapter_out, adapter_in_grad and delta_w",
                stacklevel=3,
            )


def _check_hooks_ran(table: pd.DataFrame) -> None:
    """Every layer whose gradient came has been seen at work, unless its forward pass went around the module."""
    by_site = {site: set(rows["layer"]) for site, rows in table.groupby("site", observed=True)}
    bypassed = sorted(
        by_site.get("A_grad", set()) - by_site.get("adapter_in", by_site.get("A_grad", set()))
    )
    if bypassed:
        raise StudyError(
            f"{len(bypassed)} layers are trained without their module being called ({bypassed[0]}, ...): a fused LoRA "
            "kernel goes around its hooks. In Axolotl set lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel to false; "
            'elsewhere turn it off, or ask for sites=["A", "B", "adapter_grad", "adapter_update"]'
        )


def _count_tokens(inputs: Mapping[str, Any]) -> Tensor | int:
    """Real tokens of a micro-batch, on its device; 0 where its inputs have other names."""
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.sum()
    return ids.numel() if isinstance(ids, Tensor) else 0


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` for a while."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
