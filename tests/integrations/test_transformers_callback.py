"""A run of the real Trainer over PEFT, measured by the callback, against the same run by our own training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import study
from study.cli import cli
from study.config import CellConfig
from study.data import Corpus
from study.errors import StudyError
from study.models import FrozenBase
from study.probes import NormProbe
from study.store import StudyTables
from study.training.loop import train
from study.training.run import Run

pytest.importorskip("peft")
from study.integrations.transformers import NormProbeCallback

KEYS = ["step", "layer", "site"]


def count_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def probed(trainer: Any, folder: Path, **options: Any) -> StudyTables:
    trainer.add_callback(NormProbeCallback(trainer, folder / "results" / "run", **options))
    trainer.train()
    return study.load(folder / "results" / "run")


def ours(base: FrozenBase, corpus: Corpus, config: CellConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    steps = [results[0] for results in train(base, corpus, [Run.of(config, corpus, base.device)])]
    return pd.DataFrame([s.metrics for s in steps]), pd.concat(
        [s.probes for s in steps if s.probes is not None]
    )


def assert_same_probes(theirs: pd.DataFrame, expected: pd.DataFrame, rtol: float) -> None:
    """Row by row; max_abs apart, which is one element, a statistic may differ by ``rtol`` of itself."""
    both = [
        t.astype(dict.fromkeys(KEYS[1:], str)).set_index(KEYS).sort_index()
        for t in (theirs, expected)
    ]
    assert list(both[0].index) == list(both[1].index)
    for stat in (
        "mean_abs",
        "rms",
        "m4",
        "max_abs",
        "norm",
        "descent",
        "nonfinite",
        "spectral",
        "stable_rank",
    ):
        np.testing.assert_allclose(both[0][stat], both[1][stat], rtol=rtol, atol=0, err_msg=stat)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adamw", "optimizer.lr=1e-3"],
        [
            "optimizer=sgd",
            "optimizer.lr=0.05",
            "train.accumulation=2",
            "train.clip=0.5",
            "adapter.scaling=rslora",
        ],
    ],
    ids=["adamw", "sgd, accumulated and clipped"],
)
def test_our_numbers(
    overrides: list[str],
    cell: Callable[..., CellConfig],
    tiny_base: FrozenBase,
    corpus: Corpus,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    config = cell(*overrides, "adapter.rank=4", "train.eval_every=0", "probes.steps=[0,1,2]")
    metrics, probes = ours(tiny_base, corpus, config)
    tables = probed(trainer_of(peft_model(config), config, tmp_path), tmp_path, steps=[0, 1, 2])
    last = config.train.steps
    np.testing.assert_allclose(tables.metrics["loss"], metrics["loss"][:last], rtol=1e-5)
    np.testing.assert_allclose(tables.metrics["grad_norm"], metrics["grad_norm"][:last], rtol=1e-5)
    np.testing.assert_allclose(
        tables.metrics["clip_factor"], metrics["clip_factor"][:last], rtol=1e-5
    )
    np.testing.assert_array_equal(tables.metrics["tokens"], metrics["tokens"][:last])
    if config.train.clip:
        assert tables.metrics["clip_factor"].max() < 1
    assert_same_probes(tables.probes, probes[probes["step"] < last], rtol=1e-5)
    row = tables.cells.iloc[0]
    same = (
        "rank",
        "alpha",
        "gamma",
        "scaling",
        "lr",
        "optimizer",
        "steps",
        "accumulation",
        "batch_size",
        "init",
    )
    told = {
        "rank": 4,
        "alpha": config.adapter.alpha,
        "gamma": config.adapter.gamma,
        "scaling": config.adapter.scaling,
    }
    told |= {"lr": config.optimizer.lr, "optimizer": config.optimizer.name, "init": "kaiming"}
    told |= {key: getattr(config.train, key) for key in ("steps", "accumulation", "batch_size")}
    assert {key: row[key] for key in same} == pytest.approx(told)


@pytest.fixture
def config(cell: Callable[..., CellConfig]) -> CellConfig:
    """Two optimizer steps of two micro-batches, clipped: what the tests below vary one thing of."""
    return cell(
        "adapter.rank=4",
        "train.steps=2",
        "train.batch_size=2",
        "train.accumulation=2",
        "train.clip=0.5",
    )


REENTRANT = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
}
NOT_REENTRANT = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


@pytest.mark.parametrize("options", [{}, {"bf16": True}, NOT_REENTRANT, REENTRANT], ids=str)
def test_losses_are_those_of_a_run_without_it(
    options: dict[str, Any],
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Bit for bit, with dropout drawing at random; and after it the Trainer is as it was."""
    plain = trainer_of(peft_model(config, lora_dropout=0.1), config, tmp_path, **options)
    plain.train()
    watched = trainer_of(peft_model(config, lora_dropout=0.1), config, tmp_path, **options)
    probed(watched, tmp_path, steps=[0, 1])
    assert len(losses(plain)) == 2
    assert losses(watched) == losses(plain)
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "training_step" not in vars(watched)
    assert count_hooks(watched.model) == count_hooks(
        plain.model
    )  # checkpointing has one of its own


@pytest.mark.parametrize("options", [NOT_REENTRANT, REENTRANT], ids=["not reentrant", "reentrant"])
def test_checkpointing_changes_no_number(
    options: dict[str, Any],
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    plain = probed(
        trainer_of(peft_model(config), config, tmp_path), tmp_path / "plain", steps=[0, 1]
    )
    again = probed(
        trainer_of(peft_model(config), config, tmp_path, **options),
        tmp_path / "again",
        steps=[0, 1],
    )
    assert_same_probes(again.probes, plain.probes, rtol=1e-6)
    assert set(again.metrics["step"]) == {0, 1}  # optimizer steps, not the four micro-batches


def test_bf16_autocast_is_near_float32(
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    plain = probed(trainer_of(peft_model(config), config, tmp_path), tmp_path / "plain", steps=[0])
    bf16 = probed(
        trainer_of(peft_model(config), config, tmp_path, bf16=True), tmp_path / "bf16", steps=[0]
    )
    assert bf16.cells["precision"].item() == "bf16"
    whole = [
        t.probes[(t.probes["layer"] == "model") & (t.probes["site"] == "adapter_grad")]
        for t in (plain, bf16)
    ]
    assert whole[1]["norm"].item() == pytest.approx(whole[0]["norm"].item(), rel=0.02)
    assert (bf16.probes["nonfinite"] == 0).all()


def test_an_adapter_in_bf16(
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
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
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
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


def test_dora_layers_are_named_and_their_product_left_out(
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    with pytest.warns(UserWarning, match=r"14 layers .*q_proj.* are DoraLinearVariant"):
        tables = probed(
            trainer_of(peft_model(config, use_dora=True), config, tmp_path), tmp_path, steps=[0]
        )
    sites = set(tables.probes["site"])
    assert not sites & {"adapter_out", "adapter_in_grad", "delta_w"}
    assert sites >= {"adapter_in", "layer_out", "layer_out_grad", "A_grad", "adapter_update"}


def test_refusals(
    config: CellConfig,
    tiny_base: FrozenBase,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
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
    with pytest.raises(StudyError, match="does not train adapter 'default'"):
        probed(trainer_of(model, config, tmp_path), tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_kernel_that_goes_around_the_hooks(
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """As Axolotl's lora_mlp_kernel does: the block multiplies with the layers' weights and calls no layer."""
    model = peft_model(config)
    mlp = model.get_submodule("base_model.model.model.layers.0.mlp")
    mlp.forward = lambda x: mlp.down_proj.forward(
        mlp.act_fn(mlp.gate_proj.forward(x)) * mlp.up_proj.forward(x)
    )
    with pytest.raises(
        StudyError, match=r"3 layers are trained .*layers\.0\.mlp\.down_proj.*lora_mlp_kernel"
    ):
        probed(trainer_of(model, config, tmp_path), tmp_path, steps=[0])
    trainer = trainer_of(model, config, tmp_path)
    weights_alone = probed(
        trainer, tmp_path / "weights", steps=[0], sites=["A", "adapter_grad"], stats=["rms"]
    )
    assert weights_alone.probes["layer"].nunique() == 15


def test_the_users_tracker_sees_every_layer_and_the_console_three_numbers(
    config: CellConfig,
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
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
    cell: Callable[..., CellConfig],
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Analysis, figures and report take them; the exponents are theory's. The same run again is the same cell."""
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
    assert tables.metrics.groupby("cell_id", observed=True)["eval_loss"].count().tolist() == [
        2,
        2,
        2,
    ]  # at 1 and 2
    for command in ("status", "report"):  # which analyzes and draws first
        done = CliRunner().invoke(cli, [command, str(folder)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    exponents = study.load(folder).exponents
    row = exponents.query(
        "site == 'adapter_grad' and stat == 'norm' and step == 0 and layer == 'model'"
    ).iloc[0]
    assert row["exponent"] == pytest.approx(-0.5, abs=0.05)
    assert row["predicted"] == pytest.approx(-0.5, abs=0.01)


def test_a_resumed_run_keeps_the_rows_of_before(
    cell: Callable[..., CellConfig],
    peft_model: Callable[..., Any],
    trainer_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    config = cell("train.steps=3")
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = probed(
        trainer_of(peft_model(config), config, tmp_path, **saving), tmp_path, steps=[0, 2]
    )
    trainer = trainer_of(peft_model(config), config, tmp_path, **saving)
    trainer.add_callback(NormProbeCallback(trainer, tmp_path / "results" / "run", steps=[0, 2]))
    trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    resumed = study.load(tmp_path / "results" / "run")
    assert resumed.metrics["step"].tolist() == [0, 1, 2]
    assert resumed.cells["init"].tolist() == [
        "kaiming"
    ]  # though it began with the checkpoint's weights
    np.testing.assert_array_equal(resumed.metrics["tokens"], whole.metrics["tokens"])
    np.testing.assert_allclose(resumed.metrics["loss"], whole.metrics["loss"], rtol=1e-6)
    assert_same_probes(resumed.probes, whole.probes, rtol=1e-4)


def test_a_base_of_four_bits(
    cell: Callable[..., CellConfig],
    tiny_base: FrozenBase,
    trainer_of: Callable[..., Any],
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


def test_trl(
    cell: Callable[..., CellConfig], peft_model: Callable[..., Any], tmp_path: Path
) -> None:
    """TRL's SFTTrainer, where TRL is installed."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from study.config import ModelConfig
    from study.models import load_tokenizer

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
