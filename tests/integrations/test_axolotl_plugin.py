"""The Axolotl plugin on a plain dict, and under Axolotl's plugin manager if it is installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import study
from study.config import CellConfig
from study.errors import StudyError

pytest.importorskip("peft")
from study.integrations.axolotl import NormProbePlugin

NAME = "study.integrations.axolotl.NormProbePlugin"
KERNELS_OFF = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}


@pytest.mark.parametrize("kernel", KERNELS_OFF)
def test_fused_kernels_are_refused_before_a_model_is_loaded(kernel: str) -> None:
    cfg: dict[str, Any] = {**KERNELS_OFF, kernel: True}
    with pytest.raises(
        StudyError,
        match=f"^{kernel} bypass .*lora_mlp_kernel: false, lora_qkv_kernel: false",
    ):
        NormProbePlugin().pre_model_load(cfg)
    NormProbePlugin().pre_model_load(KERNELS_OFF)
    NormProbePlugin().pre_model_load(cfg | {"norm_probe": {"sites": ["A", "adapter_grad"]}})


@pytest.mark.parametrize("value", [True, "results/mine", ["results"], 3])
def test_another_value_than_keys_is_refused(value: Any) -> None:
    with pytest.raises(StudyError, match=r"norm_probe: .* has no keys: write"):
        NormProbePlugin().pre_model_load({"norm_probe": value})


def test_it_probes_the_trainer(
    cell: Callable[..., CellConfig],
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    config = cell("train.steps=2")
    trainer = trainer_of(peft_model(config), config, tmp_path)
    cfg = {
        "datasets": [{"path": "mine.jsonl"}, {"name": "without a path"}],
        "norm_probe": {"results": str(tmp_path / "run"), "steps": [0]},
    }
    for callback in NormProbePlugin().add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    trainer.train()
    tables = study.load(tmp_path / "run")
    assert tables.cells["data"].item() == "mine.jsonl"
    assert set(tables.probes["step"]) == {0}
    assert len(tables.metrics) == 2


def test_under_axolotls_own_manager(
    cell: Callable[..., CellConfig],
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    base = pytest.importorskip("axolotl.integrations.base")
    from axolotl.utils.dict import DictDefault

    manager = base.PluginManager.get_instance()
    manager.register(NAME)
    assert isinstance(manager.plugins[NAME], base.BasePlugin)
    assert manager.get_input_args() == ["study.integrations.axolotl_args.NormProbeArgs"]
    cfg = DictDefault(
        {
            **KERNELS_OFF,
            "norm_probe": {"results": str(tmp_path / "run")},
            "datasets": [{"path": "d"}],
        }
    )
    manager.pre_model_load(cfg)
    config = cell("train.steps=1")
    trainer = trainer_of(peft_model(config), config, tmp_path)
    for callback in manager.add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    trainer.train()
    assert study.load(tmp_path / "run").probes["layer"].nunique() == 15
    with pytest.raises(StudyError, match="lora_o_kernel bypass"):
        manager.pre_model_load(DictDefault({**cfg, "lora_o_kernel": True}))


def test_the_yaml_key_is_checked() -> None:
    pydantic = pytest.importorskip("pydantic")
    from study.integrations.axolotl_args import NormProbeArgs

    assert NormProbeArgs(norm_probe={"steps": [0, 1]}).model_dump()["norm_probe"]["steps"] == [0, 1]
    with pytest.raises(pydantic.ValidationError, match="everyy"):
        NormProbeArgs(norm_probe={"everyy": 3})
