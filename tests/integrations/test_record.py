"""``study.record`` around loops of torch: its numbers, and what it refuses, notes and keeps."""

import copy
import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import nn

import study
from study.errors import StudyError
from study.models import tiny
from study.store import cell_folders, load_measured, load_records
from tests.integrations.conftest import OurBatches

peft = pytest.importorskip("peft")


@pytest.fixture
def script(cell, peft_model, tmp_path):
    """Rank 4, AdamW."""
    torch.manual_seed(0)
    return Script(peft_model(cell("adapter.rank=4")), tmp_path / "results" / "mine")


class Script:
    """Somebody's loop: ``script.run(recording, steps=3)``."""

    def __init__(self, model, results):
        self.model, self.results = model, results
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-3)

    def record(self, **options):
        options = {"steps": [0, 1], **options}
        return study.record(self.results, self.model, self.optimizer, **options)

    def batches(self, steps):
        generator = torch.Generator().manual_seed(3)
        for _ in range(steps):
            ids = torch.randint(5, 90, (2, 12), generator=generator)
            yield {"input_ids": ids, "labels": ids}

    def step(self, batch):
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, recording, steps=3, step=None, error=None):
        """Train inside ``recording``; ``step(batch)`` replaces :meth:`step`. ``error``: its end."""
        with recording:
            for batch in self.batches(steps):
                (step or self.step)(batch)
            if error:
                raise error
        return self.tables

    @property
    def tables(self):
        return load_measured(str(self.results))

    def copy(self, name):
        """The same script with a folder of its own."""
        return Script(copy.deepcopy(self.model), self.results / name)


def assert_equal(tables, expected, rtol=0.0, but=None):
    """All numbers of two recordings, up to ``rtol`` of themselves; ``but`` one statistic."""
    columns = ["step", "tokens", "loss", "grad_norm", "clip_factor", "lr"]
    options = {"rtol": rtol, "atol": 0.0, "check_exact": not rtol}
    pd.testing.assert_frame_equal(tables.metrics[columns], expected.metrics[columns], **options)
    shared = [name for name in expected.probes if name not in ("cell_id", but)]
    pd.testing.assert_frame_equal(tables.probes[shared], expected.probes[shared], **options)


CLIPPED = (
    *("optimizer=sgd", "optimizer.lr=0.05", "train.accumulation=2", "train.clip=0.5"),
    *("adapter.scaling=rslora", "adapter.rank=4", "train.eval_every=0", "probes.steps=[0,1,2]"),
)


def test_numbers_are_those_of_our_training_and_losses_stay_the_same(
    cell, corpus, peft_model, ours, assert_same, tmp_path
):
    """The loss is a mean over the supervised tokens of all micro-batches of a step. The optimizer
    may call a closure for it."""
    config = cell(*CLIPPED)
    size, parts = config.train.batch_size, config.train.accumulation
    micro = list(torch.utils.data.DataLoader(OurBatches(corpus, config), batch_size=size))

    def trained(watch, has_closure=False):
        model, losses, left = peft_model(config), list[float](), iter(micro)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=config.optimizer.lr)

        def accumulate():
            optimizer.zero_grad()
            step = list(islice(left, parts))
            supervised = sum(int((one["labels"] >= 0).sum()) for one in step)
            for one in step:
                loss = model(**one, num_items_in_batch=supervised / parts).loss
                (loss / parts).backward()
                losses.append(float(loss.detach()))
            nn.utils.clip_grad_norm_(weights, config.train.clip)

        with watch(tmp_path / f"run-{has_closure}", model, optimizer, steps=[0, 1, 2]):
            for _ in range(config.train.steps):
                if not has_closure:
                    accumulate()
                optimizer.step(accumulate if has_closure else None)
        return model, losses

    plain_model, plain = trained(lambda *_, **__: nullcontext())
    expected = ours(config)
    for has_closure in (False, True):
        model, watched = trained(study.record, has_closure)
        assert watched == plain
        for a, b in zip(plain_model.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert_same(load_measured(tmp_path / f"run-{has_closure}"), config, expected)


def test_import_study_is_instant_and_record_is_there():
    """Readers of tables never import torch. Beside Axolotl, OmegaConf can't be imported."""
    code = (
        "import study, sys; assert 'torch' not in sys.modules; study.record; "
        "import study.integrations.axolotl, study.integrations.transformers; "
        "assert 'torch' in sys.modules; assert not {'omegaconf', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rule_that_is_another_factor_in_fact_is_told(script):
    """Some software applies the rule otherwise, whatever its layers say."""
    other = script.copy("mine")
    other.results = script.results
    script.run(script.record(data="first"), 1)
    for module in other.model.modules():
        if hasattr(module, "lora_A"):
            module.forward = partial(of_other_factor, module, module.forward)
    with pytest.warns(UserWarning, match="lora is another factor in cell"):
        other.run(other.record(data="second"), 1)
    shares = sorted(record["share_of_rule"] for record in load_records(script.results))
    assert shares == pytest.approx([0.5, 1.0], rel=1e-4)


def of_other_factor(layer, forward, x):
    base = layer.base_layer(x)
    return base + (forward(x) - base) / 2


def test_refused_models_and_optimizers(script):
    model, optimizer = script.model, script.optimizer
    frozen = torch.optim.SGD(nn.Linear(2, 2).parameters())
    compiled = nn.Sequential(model)
    compiled.compile()
    lookahead = type("Lookahead", (), {"optimizer": optimizer})()
    free = transformers.optimization.Adafactor(script.weights)
    embeddings = peft.LoraConfig(r=2, target_modules=["embed_tokens"])
    on_embeddings = peft.get_peft_model(tiny.build(), embeddings)
    deepspeed = type("DeepSpeedEngine", (nn.Sequential,), {})(model)
    for given, of, message in (
        (nn.Linear(2, 2), optimizer, "Linear has no LoRA layer of PEFT: give the model"),
        (model, frozen, "the optimizer does not train all of adapter 'default'"),
        (model, "adamw", "the optimizer is a str: give torch's"),
        (optimizer, model, "model is of type AdamW: give the adapted model"),
        (model, free, "Adafactor without lr chooses its own rate: give lr="),
        (model, lookahead, "a Lookahead and may change weights after its step: give the AdamW"),
        (nn.DataParallel(model), optimizer, "each GPU of DataParallel sees a part"),
        (compiled, optimizer, "a compiled model skips the hooks"),
        (deepspeed, optimizer, "DeepSpeed hides gradients: use DDP or FSDP2"),
        (on_embeddings, optimizer, "the adapter is on embeddings only"),
    ):
        with pytest.raises(StudyError, match=message):
            study.record("results/mine", given, of)
    assert not script.results.exists()


def test_loops_that_cannot_be_measured(script):
    lbfgs = torch.optim.LBFGS(script.weights, max_iter=3)

    def no_backward(_):
        script.optimizer.step()

    def of_another(batch):
        script.model.base_model(**batch).loss.backward()
        script.optimizer.step()

    def nested(batch):
        script.run(script.record())

    def in_fp16(batch):
        with torch.autocast("cpu", torch.float16):
            script.step(batch)

    def several_closures(batch):
        lbfgs.step(lambda: script.model(**batch).loss.backward() or 0.0)

    def by_a_scaler(batch):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(script.model(**batch).loss).backward()
        scaler.step(script.optimizer)

    for step, optimizer, message in (
        (no_backward, script.optimizer, "the recorded optimizer made no step with a gradient"),
        (of_another, script.optimizer, r"step 0 .* without a backward pass"),
        (nested, script.optimizer, "recorded already: record once, around the loop"),
        (in_fp16, script.optimizer, "fp16 scales the loss"),
        (several_closures, lbfgs, "LBFGS evaluates its closure several times"),
        (
            by_a_scaler,
            script.optimizer,
            r"loss by 1024: call recording\.loss.*GradScaler.* recording\.gradients\(\)",
        ),
    ):
        recording = study.record(script.results, script.model, optimizer, steps=[0])
        with pytest.raises(StudyError, match=message):
            script.run(recording, step=step)
    with pytest.raises(StudyError, match="the recorded optimizer made no step"):
        script.run(script.record(), steps=0)
    assert not script.model._forward_pre_hooks
    recording = script.record()
    statuses = script.run(recording).cells["status"].tolist()
    assert statuses.count("complete") == 1  # nothing is left of what failed
    with pytest.raises(StudyError, match="put one `with` around all epochs"):
        script.run(recording)


def test_a_loop_that_fails(script):
    with pytest.raises(RuntimeError):
        script.run(script.record(), steps=2, error=RuntimeError("disk\nfull"))
    [folder] = (script.results / "cells").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: disk")
    assert (folder / "error.log").exists()
    assert script.tables.metrics["step"].tolist() == [0, 1]


def test_a_loop_that_is_interrupted_and_goes_on(script):
    """Rows before the checkpoint are kept, and the cell is the same, but for the motion of A: the
    resumed loop does not know the first A."""
    options = {"steps": [0, 2], "seed": 0, "total": 3}
    whole = script.copy("whole")
    expected = whole.run(whole.record(**options))
    batches, saved = list(script.batches(3)), []

    def saving(batch):
        script.step(batch)
        saved.append(copy.deepcopy((script.model.state_dict(), script.optimizer.state_dict())))

    with pytest.raises(KeyboardInterrupt):
        script.run(script.record(**options), 2, saving, KeyboardInterrupt())
    [record] = load_records(script.results)
    assert (record["status"], "error" in record) == ("interrupted", False)
    assert script.tables.metrics["step"].tolist() == [0, 1]
    script.model.load_state_dict(saved[0][0])
    script.optimizer.load_state_dict(saved[0][1])
    with script.record(**options, start=1):
        for batch in batches[1:]:
            script.step(batch)
    tables = script.tables
    assert tables.cells["status"].tolist() == ["complete"]
    assert_equal(tables, expected, but="rho")


def test_a_loss_of_ones_own(script):
    """Half the batch counts more: the recorded loss is the one that the gradient is of."""
    expected = []
    recording = script.record(steps=[0])

    def step(batch):
        expected.append(0.0)
        for weight in (0.5, 1.5):
            loss = script.model(input_ids=batch["input_ids"]).logits.square().mean()
            recording.loss(loss)
            expected[-1] += weight * float(loss.detach())
            (weight * loss).backward()
        script.optimizer.step()
        script.optimizer.zero_grad()
        recording.heldout(2.5)

    metrics = script.run(recording, steps=2, step=step).metrics
    assert metrics["loss"][:2].tolist() == pytest.approx(expected)
    assert metrics["eval_loss"].tolist()[1:] == [2.5, 2.5]
    assert metrics["step"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_loss_that_nobody_told_is_asked_for(script, is_late):
    recording = script.record()

    def step(batch):
        loss = script.model(input_ids=batch["input_ids"]).logits.square().mean()
        loss.backward()
        if is_late:
            recording.loss(loss)
        script.optimizer.step()

    with pytest.warns(UserWarning, match=r"no loss was seen: call recording\.loss"):
        metrics = script.run(recording, step=step).metrics
    assert metrics["loss"].isna().all()
    assert (metrics["grad_norm"] > 0).all()


def skip_update(script, batch, how):
    """Use a batch for no update, in one of the ways in which loops do it."""
    if how == "evaluated":
        with torch.no_grad():
            script.model(**batch)
        return
    loss = script.model(**batch).loss
    if how == "NaN before the backward pass":
        return
    if how == "gradients of something else":
        torch.autograd.grad(loss, script.weights)
    elif how == "skipped by a scaler":
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        scaler.scale(loss * float("inf")).backward()
        scaler.step(script.optimizer)
        scaler.update()
        script.optimizer.zero_grad()
    else:
        loss.backward()
        script.optimizer.zero_grad(set_to_none=how != "set to zero")
        if how == "stepped without gradients":  # as Lightning if training_step returns None
            script.optimizer.step()


SKIPS = (
    *("cleared", "set to zero", "NaN before the backward pass", "stepped without gradients"),
    *("skipped by a scaler", "evaluated", "gradients of something else"),
)


def test_a_skipped_update_leaves_nothing(script):
    """A row belongs to its update: the skipped batch changes no number and ends no cell."""
    plain = script.copy("plain")
    expected = plain.run(plain.record())

    def skipping_then_step(one, how, batch):
        skip_update(one, {name: ids[:1, :5] for name, ids in batch.items()}, how)
        one.step(batch)

    for how in SKIPS:
        one = script.copy(how)
        tables = one.run(one.record(), step=partial(skipping_then_step, one, how))
        assert_equal(tables, expected)
        row = tables.cells.iloc[0]
        assert (row["status"], row["batch_size"], row["accumulation"]) == ("complete", 2, 1), how


@pytest.mark.parametrize("has_scaler", [False, True])
def test_a_scaled_loss_is_mended(has_scaler, script):
    """The loss is scaled, then the gradients are unscaled: two lines give plain numbers."""
    plain = script.copy("plain")
    expected = plain.run(plain.record(steps=[1]), steps=4)
    recording = script.record(steps=[1])

    def step(batch):
        loss = script.model(**batch).loss
        recording.loss(loss)
        (scaler.scale(loss) if has_scaler else loss * 128).backward()
        if has_scaler:
            scaler.unscale_(script.optimizer)
        for weight in script.weights if not has_scaler else ():
            weight.grad /= 128
        recording.gradients()
        scaler.step(script.optimizer)
        scaler.update()
        script.optimizer.zero_grad()

    scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=has_scaler)
    assert_equal(script.run(recording, steps=4, step=step), expected, rtol=1e-5)


class Muon(torch.optim.SGD):
    """One that has torch's name and none of its options."""


def test_an_optimizer_is_identified_by_its_options_too(script):
    script.optimizer = Muon(script.weights, lr=1e-3)
    cells = script.run(script.record()).cells
    assert cells[["optimizer", "lr", "status"]].values.tolist() == [
        [f"{__name__.partition('.')[0]}.muon", 1e-3, "complete"]
    ]


class Constrained(torch.optim.SGD):
    """Its parent's step, then another change of the weights. Torch may call hooks in both."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for weight in self.param_groups[0]["params"]:
                weight.mul_(0.9)
        return loss


@pytest.mark.parametrize("has_closure", [False, True])
def test_an_optimizer_whose_step_calls_that_of_its_parent(script, has_closure):
    torch.optim.SGD(script.weights)  # from now on, SGD.step calls hooks
    script.optimizer = Constrained(script.weights, lr=1e-3)

    def step(batch):
        def loss_and_gradients():
            script.optimizer.zero_grad()
            script.model(**batch).loss.backward()

        if not has_closure:
            loss_and_gradients()
        script.optimizer.step(loss_and_gradients if has_closure else None)

    tables = script.run(script.record(steps=[0, 1, 2]), step=step)
    assert tables.metrics["step"].tolist() == [0, 1, 2]
    sites = tables.probes.set_index(["site", "step"])["norm"]
    assert (sites["A_update"] > 0.099 * sites["A"]).all(), "a tenth was taken off"


def test_only_a_study_error_leaves_a_step_of_the_user(script):
    """Nobody expects an Adam without betas."""
    script.optimizer = type("Adam", (torch.optim.SGD,), {})(script.weights, lr=1e-3)
    script.optimizer.param_groups[0].update(betas=None, eps=None)
    with pytest.raises(StudyError, match=r"the recording failed \(TypeError") as error:
        script.run(script.record())
    assert isinstance(error.value.__cause__, TypeError)


def clip_each(script, batch, limit=1.0):
    """Add up the gradients of the examples, each clipped, and step on their mean."""
    sums = [torch.zeros_like(weight) for weight in script.weights]
    for row in batch["input_ids"]:
        script.model(input_ids=row[None], labels=row[None]).loss.backward()
        nn.utils.clip_grad_norm_(script.weights, limit)
        for total, weight in zip(sums, script.weights, strict=True):
            total += weight.grad / len(batch["input_ids"])
        script.optimizer.zero_grad()
    for total, weight in zip(sums, script.weights, strict=True):
        weight.grad = total
    script.optimizer.step()
    script.optimizer.zero_grad()


class SAM(torch.optim.SGD):
    """Climbs by ``size`` times the sign of the gradient, takes the gradient there, and steps."""

    size = 0.01

    def step(self, closure):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        with torch.no_grad():
            climbed = [weight.grad.sign() * self.size for weight in weights]
            for weight, up in zip(weights, climbed, strict=True):
                weight.data.add_(up)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for weight, up in zip(weights, climbed, strict=True):
            weight.data.sub_(up)
        super().step()
        self.zero_grad()


def sharpness_aware(script, batch):
    def loss_and_gradients():
        script.model(**batch).loss.backward()

    loss_and_gradients()
    script.optimizer.step(loss_and_gradients)


def clip_values(script, batch):
    script.model(**batch).loss.backward()
    nn.utils.clip_grad_value_(script.weights, 1e-3)
    script.optimizer.step()
    script.optimizer.zero_grad()


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (clip_each, "Gradients changed between the last backward pass and an update"),
        (clip_values, "Gradients changed between the last backward pass and an update"),
        (sharpness_aware, "Weights changed between a forward pass and its update"),
    ],
)
def test_a_row_that_is_not_of_its_update_is_told(script, step, says):
    if step is sharpness_aware:
        script.optimizer = SAM(script.weights, lr=1e-3)
    with pytest.warns(UserWarning, match=says):
        script.run(script.record(), step=partial(step, script))
    [record] = load_records(script.results)
    assert record["training_note"].count(says) == 1


def test_usual_changes_are_not_told(script):
    """Clipping of the whole norm, a moving average that is swapped in between steps."""

    def step(batch):
        held = [weight.detach().clone() for weight in script.weights]
        with torch.no_grad():
            for weight, value in zip(script.weights, held, strict=True):
                weight.mul_(0.5)
                weight.copy_(value)
        script.model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(script.weights, 1e-3)
        script.optimizer.step()
        script.optimizer.zero_grad()

    script.run(script.record(seed=0), step=step)
    [record] = load_records(script.results)
    assert record["training_note"] == ""


@pytest.mark.parametrize("has_all_weights", [False, True])
def test_a_frozen_A_is_recorded_as_frozen(has_all_weights, script):
    """PEFT's LoRA-FA, and AdamW over all parameters of the model."""
    from peft.optimizers import create_lorafa_optimizer

    script.optimizer = create_lorafa_optimizer(script.model, 4, 16, 1e-3)
    if has_all_weights:
        script.optimizer = torch.optim.AdamW(script.model.parameters(), lr=1e-3)
    tables = script.run(script.record(steps=[1]))
    assert tables.cells[["run_frozen", "lr"]].values.tolist() == [["A", 1e-3]]
    sites = tables.probes.set_index("site")
    assert not {"A_grad", "A_update"} & set(sites.index)
    pd.testing.assert_series_equal(
        sites.loc["B_update", "norm"].reset_index(drop=True),
        sites.loc["adapter_update"].query("layer != 'model'")["norm"].reset_index(drop=True),
    )


def test_runs_of_the_same_settings_are_told_apart(script):
    """Another first batch is another cell. The same run moves the earlier one aside. Both say so. A
    learning rate in a tensor is the same.
    """

    def cells(change=lambda ids: ids, lr=0.001):
        again = script.copy("again")
        again.optimizer.param_groups[0]["lr"] = lr

        def step(batch):
            again.step({name: change(ids) for name, ids in batch.items()})

        return set(again.run(again.record(seed=0), step=step).cells["cell_id"])

    first = cells()
    with pytest.warns(
        UserWarning, match=r"settings in cell \w+, \w+ goes to aside/ if it has ended: give"
    ):
        assert cells(lr=torch.tensor(1e-3)) == first
    with pytest.warns(UserWarning, match=r"same settings in cell \w+, on other data: give seed="):
        assert len(cells(lambda ids: ids + 1)) == 2
    assert len(cells(lambda ids: ids[:1])) == 3
    one, two = script.copy("twice"), script.copy("twice")
    with one.record(seed=0):
        one.step(next(one.batches(1)))
        with pytest.raises(StudyError, match=r"another recording .* is open, .*: give seed="):
            two.run(two.record(seed=0))


def test_what_the_record_says_of_seed_and_warm_up(script):
    torch.manual_seed(2**40)  # as large as torch draws one
    schedule = torch.optim.lr_scheduler.LambdaLR(script.optimizer, lambda step: float(step > 0))

    def step(batch):
        script.step(batch)
        schedule.step()

    with pytest.warns(UserWarning, match=r"learning rate of step 0 is 0 \(warm-up\)"):
        tables = script.run(script.record(mix="a", rank=3), steps=2, step=step)
    row = tables.cells.iloc[0]
    assert (row["lr"], row["schedule"], row["run_mix"], row["seed"]) == (1e-3, "scheduled", "a", 0)
    assert (row["rank"], row["run_rank"]) == (4, 3)
    assert tables.metrics["lr"].tolist() == [0.0, 1e-3]
    [record] = load_records(script.results)
    assert record["training_note"].startswith("No seed was set: the draw of the init is unknown")
    assert "its update and its descent are 0" in record["training_note"]


def test_a_question_about_rates_of_a_recorded_study(script, works, refused):
    """It can't be trained again, so each gets an answer or a line."""
    for rate in (1e-3, 2e-3):
        one = script.copy("mine")
        one.optimizer.param_groups[0]["lr"] = rate
        with one.record(seed=0) as recording:
            one.step(next(one.batches(1)))
            recording.heldout(3 - rate)
    ran = works("advise", str(cell_folders(one.results)[0]), "--rank", "64")
    assert "LoraConfig(r=64, lora_alpha=16, use_rslora=False)" in ran.out
    asked = works("advise", str(cell_folders(one.results)[0]), "--rank", "64", "--json")
    assert "data" in json.loads(asked.out)["check"]["lacks"]
    line = refused("rates", one.results, "--refine")
    assert "is of your own loop: train there rank 4 at optimizer.lr=" in line


def test_bf16_autocast(script):
    with torch.autocast("cpu", torch.bfloat16):
        tables = script.run(script.record(steps=[0, 1]), steps=2)
    assert tables.cells["precision"].tolist() == ["bf16"]
    assert (tables.probes["nonfinite"] == 0).all()
    lost = tables.probes.query("site == 'adapter_out'").groupby("step")["swallowed"]
    assert lost.count().tolist() == [0, lost.size()[1]]  # missing while B = 0


def test_a_loop_that_diverges(script):
    for group in script.optimizer.param_groups:
        group["lr"] = 1e30
    [cell] = script.run(script.record(steps=[0])).cells.to_dict("records")
    assert (cell["status"], cell["diverged_step"], cell["steps_done"]) == ("diverged", 1, 3)


def test_the_rate_of_a_cycle_is_its_peak(script):
    torch.optim.lr_scheduler.OneCycleLR(script.optimizer, max_lr=1e-2, total_steps=9)
    tables = script.run(script.record(steps=0))
    assert tables.cells["lr"].tolist() == [1e-2]


def test_numbers_of_numpy_are_numbers(script):
    group = {"lr": np.logspace(-4, -2, 3)[1], "betas": (np.float64(0.8),) * 2}
    script.optimizer.param_groups[0].update(group)
    options = {"total": np.int64(3), "scale": np.float64(0.5)}
    tables = script.run(script.record(seed=np.int64(3), steps=np.arange(2), **options))
    assert tables.cells[["lr", "run_scale", "seed"]].values.tolist() == [[1e-3, 0.5, 3]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": None}, "data is of type NoneType: give the name of the data as a string"),
        ({"seed": "a"}, "seed='a': give a whole number"),
        ({"tokens": -1}, "tokens=-1: give a whole number"),
        ({"every": 0}, "every=0: give a whole number of at least 1"),
        ({"sites": ["q"]}, "unknown sites 'q'"),
        ({"mix": [1]}, r"mix=\[1\]: give a number, a string or a bool"),
    ],
)
def test_a_slip_in_the_call_is_named(script, options, words):
    with pytest.raises(StudyError, match=words):
        script.record(**options)
    assert not script.results.exists()


def test_data_without_tokens_are_told_apart(tmp_path):
    """A model without a config, called with a tensor."""
    for scale in (1.0, 2.0):
        torch.manual_seed(0)
        model = peft.get_peft_model(
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)),
            peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"]),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with study.record(tmp_path / "mlp", model, optimizer, steps=[0]) as recording:
            loss = model(scale * torch.ones(8, 6)).square().mean()
            recording.loss(loss)
            loss.backward()
            optimizer.step()
    cells = load_measured(tmp_path / "mlp").cells
    assert cells["batch_size"].tolist() == [8, 8]


def test_patterns_that_cover_all_layers_are_the_rank_and_the_alpha(tmp_path):
    patterns = {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}}
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], **patterns)
    model = peft.get_peft_model(tiny.build(), config)
    script = Script(model, tmp_path / "results" / "patterns")
    cells = script.run(script.record()).cells
    assert cells[["rank", "alpha", "gamma"]].values.tolist() == [[8, 32, 4]]


@pytest.mark.parametrize("form", ["detached", "tuple"])
def test_a_loss_is_seen(script, form):
    """Given after a pass that has no part in it, or the first of a tuple."""

    def step(batch):
        if form == "tuple":
            loss = script.model(**batch, return_dict=False)[0]
        else:
            output = script.model(**batch)
            script.model(**batch).logits.detach()
            loss = output.logits.float().square().mean()
            recording.loss(loss)
        loss.backward()
        script.optimizer.step()
        script.optimizer.zero_grad()

    recording = script.record()
    assert script.run(recording, step=step).metrics["loss"].notna().all()


def test_two_backward_passes_through_one_forward_pass_are_told(script):
    def step(batch):
        output = script.model(**batch)
        output.loss.backward(retain_graph=True)
        output.logits.square().mean().backward()
        script.optimizer.step()

    with pytest.warns(UserWarning, match="add the losses and call backward once"):
        script.run(script.record(), steps=1, step=step)


def test_the_motion_of_A_is_that_on_the_inputs(script):
    layer = script.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    A, inputs = layer.lora_A["default"].weight, []
    first = A.detach().clone()
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().flatten(0, 1)))
    with script.record(steps=[0, 2]) as recording:
        for batch in script.batches(3):
            before = A.detach().clone()
            script.step(batch)
    assert recording.step == 3
    moved, start = (inputs[-1] @ each.T for each in (before - first, first))
    probes = script.tables.probes.astype({"site": str, "layer": str})
    rows = probes[(probes["site"] == "A") & probes["layer"].str.endswith("layers.0.mlp.up_proj")]
    rho = rows.set_index("step")["rho"]
    assert rho[0] == 0
    assert rho[2] == pytest.approx(float(moved.norm() / start.norm()), rel=1e-4)


def test_the_motion_of_A_is_unknown_in_a_resumed_loop(script):
    tables = script.run(script.record(steps=[5, 6], start=5))
    assert "rho" not in tables.probes or tables.probes["rho"].isna().all()
