"""Per-layer norms of a PEFT run under the transformers Trainer or TRL's trainers::

trainer.add_callback(NormProbeCallback(trainer, "results/mine"))
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from study.config import DataConfig, ProbesConfig, TrainConfig
from study.errors import StudyError
from study.integrations.recording import Recording
from study.integrations.runs import INSTEAD, Loop, check_model, read_adapters
from study.vocabulary.quantities import MODEL_WIDE

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
    """Measures the layers of every adapter that ``trainer`` trains. The trackers of ``report_to``
    get a number per layer and site, the console three of the whole model.

    The arguments are those of :func:`study.record`, and ``note``: sentences for the report.
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
        note: str = "",
    ) -> None:
        args = trainer.args
        for is_wrong, why in (
            (args.fp16, "fp16 scales the loss and every gradient: train in bf16 or float32"),
            (args.n_gpu > 1, "each GPU gets a part of a step: set CUDA_VISIBLE_DEVICES=0 to probe"),
            (args.torch_compile, "torch_compile skips the hooks of layers: set it to False"),
            (trainer.is_deepspeed_enabled, f"DeepSpeed hides gradients: {INSTEAD}"),
        ):
            if is_wrong:
                raise StudyError(why)
        self.trainer, self.results = trainer, Path(results)
        self.data, self.note = data, note
        self.asked = ProbesConfig(
            every=every, steps=None if every else steps, sites=sites, stats=stats, tokens=tokens
        )
        # Now, because a checkpoint may be loaded before training begins.
        self.adapters = read_adapters(check_model(trainer.model), self.asked)
        self._reporters = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
        self._recording: Recording | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._recording is not None:
            self._end("failed", error="the run was stopped and started again")
        self._recording = Recording(
            self.trainer.model,
            self.trainer.optimizer,
            self._described,
            self.asked,
            adapters=self.adapters,
            start=state.global_step,
            total=state.max_steps,
        ).begin()
        recording, training_step = self._recording, self.trainer.training_step

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            """``training_step`` with its losses recorded. Some trainers compute their own."""
            try:
                loss = training_step(*args, **kwargs)
            except BaseException as error:
                self._watching.stop()
                self._recording = None
                recording.__exit__(type(error), error, None)
                raise
            recording.loss(loss.detach())
            return loss

        self._watching = patch.object(self.trainer, "training_step", watched)
        self._watching.start()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._recording is not None and self._recording.tables:
            self._track(self._recording.tables, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._recording is not None and control.should_save:
            self._recording.sync()

    def on_evaluate(self, *_: Any, metrics: Mapping[str, float], **__: Any) -> None:
        if self._recording is not None and "eval_loss" in metrics:
            self._recording.heldout(metrics["eval_loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._recording is not None:
            self._end()

    def _end(self, *status: str, **fields: str) -> None:
        self._watching.stop()
        recording, self._recording = self._recording, None
        assert recording is not None
        recording.end(*status, **fields)

    def _described(self, recording: Recording) -> Loop:
        trainer, args = self.trainer, self.trainer.args
        steps = trainer.state.max_steps
        bf16 = args.bf16 or trainer.model.dtype == torch.bfloat16
        name = self.data or _data_name(trainer.train_dataset)
        length: Any = getattr(args, "max_length", None)  # TRL has it, the Trainer does not
        seed = args.seed if args.data_seed is None else args.data_seed
        train = TrainConfig(
            steps=steps,
            batch_size=args.per_device_train_batch_size * recording.world.size,
            accumulation=args.gradient_accumulation_steps,
            clip=args.max_grad_norm or None,
            schedule=str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            warmup=args.get_warmup_steps(steps),
        )
        return Loop(
            self.results,
            args.seed,
            "bf16" if bf16 else "float32",
            DataConfig(name=name, sequence_length=length, heldout=0, seed=seed),
            train,
            f"{type(trainer).__name__} of {type(trainer).__module__.partition('.')[0]}",
            self.note,
        )

    def _track(self, tables: Sequence[pd.DataFrame], state: Any, control: Any) -> None:
        """Send three numbers to the console and ``trainer_state.json``, all layers to trackers."""
        whole: dict[str, float] = {}
        layers: dict[str, float] = {}
        for adapter, table in zip(self.adapters, tables, strict=True):
            prefix = "probe" if len(self.adapters) == 1 else f"probe/{adapter.name}"
            for row in table.to_dict("records"):
                is_whole = row["layer"] == MODEL_WIDE
                of_layer, numbers = ("", whole) if is_whole else (f"/{row['layer']}", layers)
                for site, stat in SHOWN if is_whole else TRACKED:
                    if row["site"] == site and stat in row:
                        numbers[f"{prefix}/{site}_{stat}{of_layer}"] = float(row[stat])
        if whole:
            # Not self.trainer.log: TRL's method resets its running means at every call.
            Trainer.log(self.trainer, whole)
        for callback in self.trainer.callback_handler.callbacks:
            if self._reporters and isinstance(callback, self._reporters):
                callback.on_log(
                    self.trainer.args, state, control, model=self.trainer.model, logs=dict(layers)
                )


def _data_name(dataset: Any) -> str:
    """A dataset of the datasets library by its fingerprint, another one by its type and length."""
    if fingerprint := getattr(dataset, "_fingerprint", None):
        return f"dataset {fingerprint}"
    length = f" of {len(dataset)}" if hasattr(dataset, "__len__") else ""
    return f"{type(dataset).__name__}{length}"
