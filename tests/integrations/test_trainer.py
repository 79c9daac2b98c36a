"""The callback of the Trainer: its numbers, its refusals, what trackers get, runs as a study."""

import os
import signal

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from study.errors import StudyError
from study.integrations.transformers import NormProbeCallback
from study.models import quantised, tiny
from study.probes import NormProbe
from study.store import load_measured
from tests.together import together

peft = pytest.importorskip("peft")
ADAMW = ("optimizer=adamw", "optimizer.lr=1e-3")
CLIPPED = ("optimizer=sgd", "optimizer.lr=0.05", "train.accumulation=2", "train.clip=0.5")


@pytest.mark.parametrize(
    ("overrides", "reentrant"), [(ADAMW, None), (CLIPPED, False), (CLIPPED, True)]
)
def test_numbers_are_those_of_our_training(
    overrides, reentrant, cell, ours, assert_same, peft_model, measured
):
    """Without gradient checkpointing, and with both kinds."""
    config = cell(*overrides, "adapter.rank=4", "train.eval_every=0", "probes.steps=[0,1,2]")
    options = {"gradient_checkpointing": reentrant is not None}
    options["gradient_checkpointing_kwargs"] = {"use_reentrant": bool(reentrant)}
    tables = measured(peft_model(config), config, options=options, steps=[0, 1, 2])
    assert_same(tables, config, ours(config))


def test_the_callback_does_not_change_training(config, peft_model, trainer_of, measured, tmp_path):
    """Bit for bit, with dropout. Afterwards the Trainer is restored."""
    options = {"bf16": True, "gradient_checkpointing": True}
    trainers, losses, hooks = [], [], []
    for is_watched in (False, True):
        model = peft_model(config, lora_dropout=0.1)
        trainers.append(trainer := trainer_of(model, config, tmp_path, **options))
        if is_watched:
            measured(trainer=trainer, steps=[0, 1])
        else:
            trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        counts = (len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        hooks.append(sum(counts))  # checkpointing has one of its own
    plain, watched = trainers
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    assert hooks[0] == hooks[1]
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "training_step" not in vars(watched)


class Kill(TrainerCallback):
    def on_save(self, *_, **__):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("saved_at", [3, 5])
def test_a_run_that_was_killed_in_on_save_keeps_all_rows(
    saved_at, cell, peft_model, trainer_of, tmp_path
):
    """The last save is after the last update. A resumed Trainer makes another one."""

    def run(*more, resume=False):
        config = cell("adapter.rank=4", "train.steps=5")
        saving = {"save_strategy": "steps", "save_steps": saved_at}
        trainer = trainer_of(peft_model(config), config, tmp_path, **saving)
        for callback in (*more, NormProbeCallback(trainer, tmp_path / "run", steps=[0, 2, 4])):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)

    assert together(lambda _: run(Kill()), tmp_path, 1) == [None]
    run(resume=True)
    tables = load_measured(tmp_path / "run")
    assert tables.cells["status"].tolist() == ["complete"]
    assert tables.metrics["step"].tolist() == [0, 1, 2, 3, 4]
    assert sorted(set(tables.probes["step"])) == [0, 2, 4]


def test_what_the_trainer_may_not_do(config, peft_model, trainer_of, tmp_path, monkeypatch):
    """What models and optimizers may not be: test_record."""
    trainer = trainer_of(peft_model(config), config, tmp_path)
    for of, name, message in (
        (trainer.args, "fp16", "scales the loss"),
        (trainer.args, "torch_compile", "hooks of layers"),
        (trainer, "is_deepspeed_enabled", "DeepSpeed hides gradients: use DDP or FSDP2"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, True)
            with pytest.raises(StudyError, match=message):
                NormProbeCallback(trainer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_kernel_that_bypasses_the_hooks(config, peft_model, measured, tmp_path):
    """Like Axolotl's lora_mlp_kernel: the block uses the layers' weights and calls no layer."""
    model = peft_model(config)
    mlp = model.get_submodule("base_model.model.model.layers.0.mlp")
    mlp.forward = lambda x: mlp.down_proj.forward(
        mlp.act_fn(mlp.gate_proj.forward(x)) * mlp.up_proj.forward(x)
    )
    with pytest.raises(
        StudyError, match=r"hooks of 3 trained layers .*layers\.0\.mlp\.down_proj.*lora_mlp_kernel"
    ):
        measured(model, config, steps=[0])
    weights = {"sites": ["A", "adapter_grad"], "stats": ["rms"]}
    alone = measured(model, config, tmp_path / "weights", steps=[0], **weights)
    assert alone.probes["layer"].nunique() == 15


def test_trackers_get_every_layer_and_the_console_three_numbers(
    config, peft_model, trainer_of, measured, tmp_path, monkeypatch
):
    seen = {}

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.setdefault(state.global_step, set()).update(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    trainer = trainer_of(peft_model(config), config, tmp_path, report_to=["tracker"])
    measured(trainer=trainer, steps=[1])
    layer = "model.layers.1.mlp.up_proj"
    assert {f"probe/adapter_grad_norm/{layer}", f"probe/adapter_out_rms/{layer}"} <= seen[1]
    assert not any(key.startswith("probe/") for key in seen[2])
    ours = {key for entry in trainer.state.log_history for key in entry if key.startswith("probe/")}
    assert ours == {f"probe/adapter_{of}" for of in ("grad_norm", "update_norm", "update_descent")}


def test_a_cell_for_each_active_adapter(config, peft_model, measured):
    model = peft_model(config)
    wide = peft.LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj"])
    model.add_adapter("wide", wide)
    model.add_adapter("idle", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "wide"])
    with pytest.raises(StudyError, match=r"2 active LoRA adapters in one layer \(default, wide\)"):
        NormProbe(model)
    tables = measured(model, config, steps=[0])
    gammas = tables.cells.set_index("rank")["gamma"].to_dict()
    assert gammas == pytest.approx({4.0: 4.0, 8.0: 16 / 8**0.5})
    layers = tables.probes.groupby("cell_id", observed=True)["layer"].nunique()
    assert sorted(layers) == [3, 15]


def test_dora_layers_are_named_and_have_no_product(config, peft_model, measured):
    with pytest.warns(UserWarning, match=r"14 layers .*q_proj.* are DoraLinearVariant"):
        tables = measured(peft_model(config, use_dora=True), config, steps=[0])
    sites = set(tables.probes["site"])
    assert not sites & {"adapter_out", "adapter_in_grad", "delta_w"}
    assert sites >= {"adapter_in", "layer_out", "layer_out_grad", "A_grad", "adapter_update"}


def test_a_base_of_four_bits(cell, measured):
    pytest.importorskip("bitsandbytes")
    model = quantised.reloaded(tiny.build(), torch.device("cpu"), torch.float32, 4)
    lora = peft.LoraConfig(r=4, target_modules="all-linear")
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(model), lora)
    config = cell("adapter.rank=4", "train.steps=1", "train.batch_size=2")
    probes = measured(model, config, steps=[0]).probes
    assert (probes["nonfinite"] == 0).all()
    assert (probes.query("site == 'adapter_grad'")["norm"] > 0).all()
