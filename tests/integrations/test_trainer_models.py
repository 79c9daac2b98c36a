"""The callback with other adapters, bases and trainers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config import CellConfig, ModelConfig
from study.errors import StudyError
from study.models import FrozenBase, load_tokenizer
from study.probes import NormProbe

pytest.importorskip("peft")

Make = Callable[..., Any]
"""Builds a cell, a PEFT model, a Trainer, or the tables of a probed run."""


def test_an_adapter_in_bf16(
    config: CellConfig,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    model = peft_model(config).to(torch.bfloat16)
    tables = probed(trainer_of(model, config, tmp_path), tmp_path, steps=[0])
    assert (tables.probes["nonfinite"] == 0).all()
    assert set(tables.probes["site"]) >= {
        "adapter_out",
        "adapter_in_grad",
        "delta_w",
        "adapter_update",
    }


def test_a_cell_for_each_active_adapter(
    config: CellConfig,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    from peft import LoraConfig

    model = peft_model(config)
    model.add_adapter(
        "wide", LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj"])
    )
    model.add_adapter("idle", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "wide"])
    with pytest.raises(StudyError, match=r"2 active LoRA adapters in one layer \(default, wide\)"):
        NormProbe(model)
    tables = probed(trainer_of(model, config, tmp_path), tmp_path, steps=[0])
    assert tables.cells.set_index("rank")["gamma"].to_dict() == pytest.approx(
        {4.0: 4.0, 8.0: 16 / 8**0.5}
    )
    assert tables.probes.groupby("cell_id", observed=True)[
        "layer"
    ].nunique().sort_values().tolist() == [3, 15]


def test_dora_layers_are_named_and_have_no_product(
    config: CellConfig,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    with pytest.warns(UserWarning, match=r"14 layers .*q_proj.* are DoraLinearVariant"):
        tables = probed(
            trainer_of(peft_model(config, use_dora=True), config, tmp_path), tmp_path, steps=[0]
        )
    sites = set(tables.probes["site"])
    assert not sites & {"adapter_out", "adapter_in_grad", "delta_w"}
    assert sites >= {"adapter_in", "layer_out", "layer_out_grad", "A_grad", "adapter_update"}


def test_a_base_of_four_bits(
    cell: Make,
    tiny_base: FrozenBase,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_base.model.save_pretrained(tmp_path / "base")
    bits = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=bits, device_map="cpu"
    )
    model = get_peft_model(
        prepare_model_for_kbit_training(model), LoraConfig(r=4, target_modules="all-linear")
    )
    config = cell("adapter.rank=4", "train.steps=1", "train.batch_size=2")
    tables = probed(trainer_of(model, config, tmp_path), tmp_path, steps=[0])
    assert tables.probes["layer"].nunique() == 15
    assert (tables.probes["nonfinite"] == 0).all()
    assert (tables.probes.query("site == 'adapter_grad'")["norm"] > 0).all()


def test_trl(cell: Make, peft_model: Make, probed: Make, tmp_path: Path) -> None:
    """TRL's SFTTrainer, if TRL is installed."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")

    data = datasets.Dataset.from_list(
        [{"prompt": f"Say {n}:", "completion": f" {n}"} for n in range(8)]
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = trl.SFTTrainer(
        model=peft_model(cell()),
        args=arguments,
        train_dataset=data,
        processing_class=load_tokenizer(ModelConfig("tiny")),
    )
    tables = probed(trainer, tmp_path, steps=[0, 1])
    assert set(tables.probes["site"]) >= {"adapter_out", "layer_out_grad", "adapter_update"}
    assert tables.metrics["loss"].notna().all()
