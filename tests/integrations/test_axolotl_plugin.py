"""The Axolotl plugin on plain dicts."""

import pydantic
import pytest
import torch

from study.store import load_measured, load_records

pytest.importorskip("peft")
from study.integrations.axolotl import NormProbeArgs, NormProbePlugin

KERNELS_OFF = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}


def checked(**yaml):
    """The YAML as Axolotl checks it: by its own class, joined with the plugin's."""
    kernels = dict.fromkeys(KERNELS_OFF, (bool | None, None))
    joined = pydantic.create_model("Joined", __base__=NormProbeArgs, **kernels)
    return joined(**yaml)


@pytest.mark.parametrize("kernel", KERNELS_OFF)
def test_fused_kernels_are_refused_when_the_yaml_is_checked(kernel):
    """The first hook that Axolotl calls; it patches the model's code before the next one."""
    on = {**KERNELS_OFF, kernel: True}
    with pytest.raises(
        pydantic.ValidationError,
        match=f"{kernel} bypass .*lora_mlp_kernel: false, lora_qkv_kernel: false",
    ):
        checked(**on)
    checked(**KERNELS_OFF)
    checked(**on, norm_probe={"sites": ["A", "adapter_grad"]})


@pytest.mark.parametrize("value", ["results/mine", {"everyy": 3}])
def test_another_value_than_keys_is_refused(value):
    with pytest.raises(pydantic.ValidationError, match="norm_probe"):
        checked(norm_probe=value)
    options = checked(norm_probe={"steps": [0, 1]}).model_dump()["norm_probe"]
    assert options["steps"] == [0, 1]


def test_a_seed_that_is_set_reaches_the_init():
    """Axolotl draws the adapter before it uses ``seed``."""
    for before, seed, after in ((2**40, 7, 7), (2**40, None, 2**40), (3, 7, 3)):
        torch.manual_seed(before)
        NormProbePlugin().pre_lora_load({"seed": seed}, None)
        assert torch.initial_seed() == after


def test_it_probes_the_trainer(cell, peft_model, trainer_of, tmp_path):
    config = cell("train.steps=2")
    trainer = trainer_of(peft_model(config), config, tmp_path)
    cfg = {
        "datasets": [{"path": "mine.jsonl"}, {"name": "without a path"}],
        "norm_probe": {"results": str(tmp_path / "run"), "steps": [0]},
    }
    for callback in NormProbePlugin().add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    trainer.train()
    tables = load_measured(tmp_path / "run")
    assert tables.cells["data"].item() == "mine.jsonl"
    assert set(tables.probes["step"]) == {0}
    assert len(tables.metrics) == 2
    [record] = load_records(tmp_path / "run")
    assert record["training_note"].startswith("No seed was set: the draw of the init is")
