"""What the callback refuses, what trackers get, and runs of several ranks as a study."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import study
from study.cli import cli
from study.config import CellConfig
from study.errors import StudyError
from study.models import FrozenBase

pytest.importorskip("peft")
from study.integrations.transformers import NormProbeCallback

Make = Callable[..., Any]
"""Builds a cell, a PEFT model, a Trainer, or the tables of a probed run."""


def test_refusals(
    config: CellConfig,
    tiny_base: FrozenBase,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_of(tiny_base.model, config, tmp_path)
    with pytest.raises(StudyError, match="LlamaForCausalLM has no LoRA layer"):
        NormProbeCallback(trainer, tmp_path / "run")
    trainer = trainer_of(peft_model(config), config, tmp_path)
    with pytest.raises(StudyError, match="unknown sites 'q'"):
        NormProbeCallback(trainer, tmp_path / "run", sites=["q"])
    for name, message in (("fp16", "scales the loss"), ("torch_compile", "hooks of layers")):
        with monkeypatch.context() as patch:
            patch.setattr(trainer.args, name, True)
            with pytest.raises(StudyError, match=message):
                NormProbeCallback(trainer, tmp_path / "run")
    model = peft_model(config)
    model.requires_grad_(False)
    next(model.get_submodule("base_model.model.lm_head").parameters()).requires_grad_(True)
    with pytest.raises(StudyError, match="does not train all of adapter 'default'"):
        probed(trainer_of(model, config, tmp_path), tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_kernel_that_bypasses_the_hooks(
    config: CellConfig,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    """Like Axolotl's lora_mlp_kernel: the block uses the layers' weights and calls no layer."""
    model = peft_model(config)
    mlp = model.get_submodule("base_model.model.model.layers.0.mlp")
    mlp.forward = lambda x: mlp.down_proj.forward(
        mlp.act_fn(mlp.gate_proj.forward(x)) * mlp.up_proj.forward(x)
    )
    with pytest.raises(
        StudyError, match=r"hooks of 3 trained layers .*layers\.0\.mlp\.down_proj.*lora_mlp_kernel"
    ):
        probed(trainer_of(model, config, tmp_path), tmp_path, steps=[0])
    trainer = trainer_of(model, config, tmp_path)
    weights_alone = probed(
        trainer, tmp_path / "weights", steps=[0], sites=["A", "adapter_grad"], stats=["rms"]
    )
    assert weights_alone.probes["layer"].nunique() == 15


def test_trackers_get_every_layer_and_the_console_three_numbers(
    config: CellConfig,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen: dict[int, set[str]] = {}

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.setdefault(state.global_step, set()).update(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    trainer = trainer_of(peft_model(config), config, tmp_path, report_to=["tracker"])
    probed(trainer, tmp_path, steps=[1])
    layer = "model.layers.1.mlp.up_proj"
    assert {f"probe/adapter_grad_norm/{layer}", f"probe/adapter_out_rms/{layer}"} <= seen[1]
    assert not any(key.startswith("probe/") for key in seen[2])
    ours = {key for entry in trainer.state.log_history for key in entry if key.startswith("probe/")}
    assert ours == {
        "probe/adapter_grad_norm",
        "probe/adapter_update_norm",
        "probe/adapter_update_descent",
    }


def test_runs_of_several_ranks_are_a_study(
    cell: Make,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    """Analysis and report read them, with the predicted exponents. A repeated run is one cell."""
    folder = tmp_path / "results" / "run"
    for rank in (4, 16, 64, 64):
        config = cell(f"adapter.rank={rank}", "optimizer.lr=1e-4", "train.steps=2")
        trainer = trainer_of(
            peft_model(config), config, tmp_path, eval_strategy="steps", eval_steps=1
        )
        probed(trainer, tmp_path, steps=[0, 1], stats=["rms", "norm", "descent"], data="ours")
    tables = study.load(folder)
    assert tables.cells["rank"].tolist() == [4.0, 16.0, 64.0]
    assert (tables.cells["status"] == "complete").all()
    evaluated = tables.metrics.groupby("cell_id", observed=True)["eval_loss"].count()
    assert evaluated.tolist() == [2, 2, 2]  # at steps 1 and 2
    for command in ("status", "report"):  # report also analyzes and draws
        done = CliRunner().invoke(cli, [command, str(folder)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    report = (folder / "report.md").read_text()
    base = "model: LlamaForCausalLM (trained by the Trainer of transformers; content not hashed)"
    assert base in report
    assert "PeftModel" not in report
    assert "published" not in report, "the report cannot know which weights the Trainer got"
    exponents = study.load(folder).exponents
    row = exponents.query(
        "site == 'adapter_grad' and stat == 'norm' and step == 0 and layer == 'model'"
    ).iloc[0]
    assert row["exponent"] == pytest.approx(-0.5, abs=0.05)
    assert row["predicted"] == pytest.approx(-0.5, abs=0.01)


def test_a_run_that_is_stuck_says_so(
    cell: Make, peft_model: Make, trainer_of: Make, probed: Make, tmp_path: Path
) -> None:
    """As in our own training: finite losses, and no gradient from some step on."""
    config = cell("optimizer=sgd", "optimizer.lr=1e4", "train.steps=6", "train.clip=1e9")
    tables = probed(trainer_of(peft_model(config), config, tmp_path), tmp_path, steps=[0])
    [ended] = tables.cells.to_dict("records")
    assert ended["status"] == "stuck"
    rows = tables.metrics.set_index("step")
    assert rows["loss"].map(math.isfinite).all()
    step = int(ended["stuck_step"])
    assert (rows.loc[step:, "grad_norm"] == 0).all()
    assert rows.loc[step - 1, "grad_norm"] > 0
