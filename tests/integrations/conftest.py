"""Runs of the Trainer over PEFT on the tiny base, with the batches that our own training reads."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from study.adapters import AdapterSpec
from study.adapters.bank import initial_pair
from study.config import CellConfig
from study.data.batches import Corpus
from study.store import StudyTables, load_measured
from tests.trained import trained

KEYS = ["step", "layer", "site"]
STATS = (
    *("mean_abs", "rms", "m4", "max_abs", "norm", "descent"),
    *("nonfinite", "spectral", "stable_rank"),
)


class OurBatches(torch.utils.data.IterableDataset):
    """The examples of a cell's batches, in order. The Trainer does not shuffle such a dataset."""

    def __init__(self, corpus: Corpus, config: CellConfig) -> None:
        self.corpus, self.config = corpus, config

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        train = self.config.train
        for position in range(train.steps * train.accumulation):
            batch = self.corpus.train.batch(self.config.data.seed, position, train.batch_size)
            for ids_T, targets_T, real_T in zip(
                batch.input_ids_BT, batch.targets_BT, batch.real_BT, strict=True
            ):
                # transformers shifts labels back.
                labels_T = torch.cat([torch.tensor([-100]), targets_T[:-1]])
                yield {"input_ids": ids_T, "labels": labels_T, "attention_mask": real_T.long()}


@pytest.fixture(scope="session")
def peft_model(tiny_base) -> Callable[..., nn.Module]:
    """The tiny base under PEFT, with the A of our cell of the same rank and seed."""
    peft = pytest.importorskip("peft")

    def build(config, **options):
        adapter = config.adapter
        lora = peft.LoraConfig(
            **{
                "r": adapter.rank,
                "lora_alpha": adapter.alpha,
                "use_rslora": adapter.scaling == "rslora",
                "target_modules": adapter.targets,
                "task_type": "CAUSAL_LM",
                **options,
            }
        )
        model = peft.get_peft_model(copy.deepcopy(tiny_base.model), lora)
        spec = AdapterSpec(adapter.rank, adapter.gamma, config.seed)
        with torch.no_grad():
            for name, module in model.named_modules():
                if "default" in getattr(module, "lora_A", ()):
                    layer = name.removeprefix("base_model.model.")
                    A_RD, _ = initial_pair(spec, layer, module.in_features, module.out_features)
                    module.lora_A["default"].weight.copy_(A_RD)
        return model

    return build


@pytest.fixture
def patterned(tiny_base) -> Any:
    """A model of PEFT whose ranks and alphas differ by layer. One layer has not moved: B = 0."""
    peft = pytest.importorskip("peft")
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}
    patterns |= {"lora_dropout": 0.1, "target_modules": ["q_proj", "up_proj", "down_proj"]}
    config = peft.LoraConfig(r=6, lora_alpha=8, use_rslora=True, **patterns)
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model), config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name and "layers.0.mlp.down_proj" not in name:
            nn.init.normal_(weight, std=0.1, generator=generator)
    return model.eval()


@pytest.fixture
def theirs(patterned, tmp_path) -> Path:
    """The folder in which PEFT saved its adapter."""
    patterned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="session")
def trainer_of(corpus) -> Callable[..., Any]:
    """A Trainer as a cell configures it: ``trainer_of(model, config, folder, bf16=True)``."""

    def build(model, config, folder, **options):
        from transformers import Trainer, TrainingArguments

        train = config.train
        arguments = {
            "output_dir": str(folder / "trainer"),
            "per_device_train_batch_size": train.batch_size,
            "gradient_accumulation_steps": train.accumulation,
            "max_steps": train.steps,
            "learning_rate": config.optimizer.lr,
            "optim": {"adamw": "adamw_torch_fused", "sgd": "sgd"}[config.optimizer.name],
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": train.clip or 0.0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": config.seed,
            **options,
        }
        data = OurBatches(corpus, config)
        held_out = list(data)[:2] if "eval_strategy" in options else None
        return Trainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=data,
            eval_dataset=held_out,
        )

    return build


@pytest.fixture
def measured(trainer_of, tmp_path) -> Callable[..., StudyTables]:
    """Train with the callback and read the tables: ``measured(model, config, steps=[0])``.

    ``folder``: the study's; ``options``: of the Trainer; ``trainer``: one that is there.
    """
    from study.integrations.transformers import NormProbeCallback

    def train(
        model=None,
        config=None,
        folder=tmp_path / "results" / "run",
        options=None,
        trainer=None,
        **probes,
    ):
        trainer = trainer or trainer_of(model, config, tmp_path, **(options or {}))
        trainer.add_callback(NormProbeCallback(trainer, folder, **probes))
        trainer.train()
        return load_measured(folder)

    return train


@pytest.fixture(scope="session")
def ours(tiny_base, corpus) -> Callable[..., tuple[pd.DataFrame, pd.DataFrame]]:
    """The tables ``metrics`` and ``probes`` of our own training, without its last step."""

    def train_ours(config):
        [steps] = trained(tiny_base, corpus, config)
        probes = pd.concat([step.probes for step in steps if step.probes is not None])
        metrics = pd.DataFrame([step.metrics for step in steps])
        last = config.train.steps
        return metrics[:last], probes[probes["step"] < last]

    return train_ours


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """``(tables, config, (metrics, probes))``: the tables of a recording are those of ``ours``."""

    def compare(tables, config, ours):
        for name in ("loss", "grad_norm", "clip_factor", "tokens"):
            np.testing.assert_allclose(tables.metrics[name], ours[0][name], 1e-5, err_msg=name)
        assert (tables.metrics["clip_factor"].max() < 1) == bool(config.train.clip)
        theirs, expected = (
            t.astype(dict.fromkeys(KEYS[1:], str)).set_index(KEYS).sort_index()[list(STATS)]
            for t in (tables.probes, ours[1])
        )
        pd.testing.assert_frame_equal(
            theirs, expected, rtol=1e-5, atol=0, check_dtype=False, check_index_type=False
        )
        about = {key: getattr(config.adapter, key) for key in ("alpha", "gamma", "scaling")}
        for key in ("steps", "accumulation", "batch_size"):
            about[key] = getattr(config.train, key)
        about |= {"lr": config.optimizer.lr, "optimizer": config.optimizer.name, "rank": 4}
        about |= {"init": "kaiming", "seed": config.seed, "status": "complete"}
        row = tables.cells.iloc[0]
        assert {key: row[key] for key in about} == pytest.approx(about)

    return compare


@pytest.fixture
def config(cell) -> CellConfig:
    """Two optimizer steps of two micro-batches, clipped."""
    return cell(
        *("adapter.rank=4", "train.steps=2", "train.batch_size=2"),
        *("train.accumulation=2", "train.clip=0.5"),
    )
