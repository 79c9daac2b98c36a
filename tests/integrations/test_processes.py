"""Loops on several processes: their recordings are those of one process with the same batches.

The loops of docs/trainers.md and docs/processes.md run as they stand there.
"""

import math
import os
import re
import signal
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import study
from study.config import ModelConfig
from study.errors import StudyError
from study.integrations.runs import INSTEAD
from study.models import load_tokenizer
from study.store import load_measured, load_records
from tests.together import together

accelerate, datasets, lightning, _, trl = map(
    pytest.importorskip, ("accelerate", "datasets", "lightning", "peft", "trl")
)

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n".join((DOCS / name).read_text() for name in ("trainers.md", "processes.md"))
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
STEPS, PARTS, ROWS = 3, 4, 6
"""Updates, micro-batches of each, and rows of a micro-batch in all processes."""
KEYS = ["step", "layer", "site"]
MORE = ["all", "r_parts", "effective_rank", "row_share"]
NUMBERS = ["step", "tokens", "loss", "grad_norm", "clip_factor", "lr"]


def rows():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 90, (STEPS * PARTS * ROWS, 12), generator=generator)
    return [{"input_ids": each, "labels": each} for each in ids]


def with_torch(
    names,
    number,
    size,
    see=lambda step: None,
    wrap=DistributedDataParallel,
    uneven=0,
    scaler=None,
    average=None,
    **options,
):
    """DDP and ``no_sync``; or a model that FSDP2 divides. ``uneven``: the rows that the first and
    the last micro-batch of a step lack. ``scaler``: skips an update before each. ``average``: gets
    the recording and the weights before they are clipped."""
    model, optimizer = names["peft_model"], names["optimizer"]
    weights = optimizer.param_groups[0]["params"]
    model = model if size == 1 or hasattr(weights[0], "to_local") else wrap(model)
    ids_SPBT = torch.stack([row["input_ids"] for row in rows()]).view(STEPS, PARTS, ROWS, -1)

    def loss_of(ids_BT):
        """This process's part of the mean over the rows of all, as DDP takes the mean of parts."""
        own_BT = ids_BT[number::size]
        return model(input_ids=own_BT, labels=own_BT).loss * (size * len(own_BT) / len(ids_BT))

    with study.record("results/mine", model, optimizer, **{"steps": [0, 1], **options}) as watching:
        for step, ids_PBT in enumerate(ids_SPBT):
            see(step)
            if scaler:
                one_is_infinite = float("inf") if number == size - 1 else 1.0
                scaler.scale(loss_of(ids_PBT[0]) * one_is_infinite).backward()
                scaler.step(optimizer)
                scaler.update(1.0)
                optimizer.zero_grad()
            for part, ids_BT in enumerate(ids_PBT):
                is_last = part == PARTS - 1
                if hasattr(model, "set_requires_gradient_sync"):
                    model.set_requires_gradient_sync(is_last)
                waits = not is_last and hasattr(model, "no_sync")
                with model.no_sync() if waits else nullcontext():
                    rows_here = ROWS - uneven * (part in (0, PARTS - 1))
                    (loss_of(ids_BT[:rows_here]) / PARTS).backward()
            if average:
                average(watching, weights)
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        see(STEPS)


def with_skipped_updates(names, number, size):
    with_torch(names, number, size, scaler=torch.amp.GradScaler("cpu", init_scale=1.0), stats=MORE)


def averaged(recording, weights, is_told=True):
    """By hand."""
    for weight in weights:
        if dist.is_initialized():
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()
    if is_told:
        recording.gradients()


def with_fully_shard(names, number, size, *see, **options):
    model = names["peft_model"]
    if size > 1:
        for block in model.base_model.model.model.layers:
            fully_shard(block)
        names["optimizer"] = sgd(fully_shard(model))
    with_torch(names, number, size, *see, **options)


def of_page(text):
    """The only block of the page with ``text``."""
    [code] = [code for code in BLOCKS if text in code]
    return lambda names, *_: exec(compile(code, "docs/trainers.md", "exec"), names)


def with_lightning(names, number, size):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    names["trainer"] = lightning.Trainer(
        accelerator="cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        use_distributed_sampler=False,  # it would shuffle
        max_epochs=1,
        accumulate_grad_batches=PARTS,
        gradient_clip_val=1.0,
        **dict.fromkeys(quiet, False),
    )
    names["loader"] = torch.utils.data.DataLoader(rows()[number::size], batch_size=ROWS // size)
    of_page("LightningModule")(names)


def with_trainer(names, number, size, **packed):
    """The transformers Trainer, or TRL's if there are ``packed`` options."""
    options = {
        "output_dir": "out",
        "per_device_train_batch_size": ROWS // size,
        "gradient_accumulation_steps": PARTS,
        "max_steps": STEPS,
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
    } | {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    make, names["data"] = transformers.Trainer, rows()
    names["args"] = (trl.SFTConfig if packed else transformers.TrainingArguments)(
        **options, **packed
    )
    if packed:
        texts = [{"text": f"Say {'very ' * (n % 7)}{n} twice."} for n in range(400)]
        names["data"] = datasets.Dataset.from_list(texts)
        tokenizer = load_tokenizer(ModelConfig("tiny"))
        make = lambda **given: trl.SFTTrainer(processing_class=tokenizer, **given)  # noqa: E731
    of_page("SFTTrainer")(names | {"SFTTrainer": make})


def with_sft(names, number, size):
    packed = {"packing": True, "packing_strategy": "wrapped", "max_length": 16, "bf16": False}
    with_trainer(names, number, size, **packed)


def with_fsdp2(loop):
    """On a CPU accelerate makes DDP whatever the plug-in says, and does not say so. The state that
    it has on GPUs sends it through its own code for FSDP2."""
    state = accelerate.state.AcceleratorState
    begin = state.__init__

    def begin_with_fsdp2(self, *given, **options):
        begin(self, *given, **options)
        self.distributed_type = accelerate.DistributedType.FSDP
        self.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2)

    def run(names, number, size):
        with pytest.MonkeyPatch.context() as patch:
            if size > 1:
                patch.setattr(state, "__init__", begin_with_fsdp2)
            loop(names, number, size)

    return run


with_accelerate = of_page("accelerator.prepare")
LOOPS = {
    "torch, DDP": partial(with_torch, stats=MORE),
    "torch, DDP, uneven micro-batches": partial(with_torch, uneven=1),
    "torch, DDP, updates that GradScaler skips": with_skipped_updates,
    "torch, gradients averaged by hand": partial(
        with_torch, wrap=lambda model: model, average=averaged, stats=MORE
    ),
    "torch, `fully_shard`": partial(with_fully_shard, stats=MORE),
    "accelerate, DDP": with_accelerate,
    "accelerate, FSDP2": with_fsdp2(with_accelerate),
    "Lightning, DDP": with_lightning,
    "the transformers Trainer, DDP": with_trainer,
    "the transformers Trainer, FSDP2": with_fsdp2(with_trainer),
    "TRL's SFTTrainer, packing, DDP": with_sft,
}
"""All accumulate four micro-batches."""
OF_THREE = "torch, DDP, uneven micro-batches", "torch, `fully_shard`"


def sgd(model):
    return torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.5)


@pytest.fixture(scope="module")
def script(cell, peft_model):
    """``script(folder, size)``: works in a new folder, with what a script has before the lines of
    the page. B is not 0, so that updates of A are more than rounding."""

    def names(folder, size=1):
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        torch.manual_seed(0)
        model = peft_model(cell("adapter.rank=4"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
        loader = torch.utils.data.DataLoader(rows(), batch_size=ROWS // size)
        of_script = {"peft_model": model, "optimizer": sgd(model), "loader": loader}
        on_cpu = lambda **options: accelerate.Accelerator(cpu=True, **options)  # noqa: E731
        libraries = {"study": study, "lightning": lightning, "Accelerator": on_cpu}
        return of_script | libraries

    return names


def on_several(folder, task, size=2):
    """What ``task(number)`` returns in each process; None if it was killed."""

    def joined(number):
        dist.init_process_group("gloo")
        found = task(number)
        dist.destroy_process_group()
        return found

    return together(joined, folder, size)


def differences(ours, theirs):
    """Relative ones. 0 where both are missing, infinite where one is."""
    assert ours.index.equals(theirs.index)
    both = ours.isna() & theirs.isna()
    return ((ours - theirs).abs() / theirs.abs().clip(lower=1e-12)).mask(both, 0).fillna(math.inf)


def probed(tables):
    table = tables.probes.drop(columns=["cell_id", "kind", "batch"])
    return table.astype(dict.fromkeys(KEYS[1:], str)).set_index(KEYS).sort_index()


@pytest.mark.parametrize("size", [2, 3])
def test_numbers_are_those_of_one_process_with_the_same_batches(
    size, script, tmp_path, monkeypatch
):
    """Writes the rows of a table of docs/processes.md."""
    loops = [loop for loop in LOOPS if size == 2 or loop in OF_THREE]
    head = ["loop", "processes", "loss, gradient norm, clip factor", "gradients and updates"]
    lines = [[*head, "all statistics"], ["---"] * 5] if size == 2 else []

    def task(number):
        for loop in loops:
            LOOPS[loop](script(tmp_path / "several" / loop, size), number, size)

    monkeypatch.chdir(tmp_path)
    for loop in loops:  # before the others, so that libraries are imported before the fork
        LOOPS[loop](script(tmp_path / "alone" / loop), 0, 1)
    found = on_several(tmp_path, task, size)
    assert found == [None] * size, (tmp_path / "stderr-0").read_text()[-2000:]
    for loop in loops:
        places = [tmp_path / place / loop / "results/mine" for place in ("several", "alone")]
        ours, theirs = map(load_measured, places)
        assert (theirs.metrics["clip_factor"] < 1).all(), "clipping is part of this test"
        assert len(theirs.metrics) == STEPS
        assert ours.cells["cell_id"].tolist() == theirs.cells["cell_id"].tolist(), loop
        [record] = load_records(places[0])
        assert (record["status"], record["processes"]) == ("complete", size)
        how = "FSDP2" if "FSDP2" in loop or "fully_shard" in loop else "DDP"
        assert record["trained_by"].endswith(f" on {size} processes ({how})")
        of_steps = differences(ours.metrics[NUMBERS], theirs.metrics[NUMBERS])
        table = differences(probed(ours), probed(theirs))
        assert (table.pop("r_parts") < 1e-3).all(), "a small difference of large numbers"
        assert (table.pop("rho") < 0.5).all(), "of the inputs of one process"
        of_weights = table.index.get_level_values("site").str.contains("grad|update")
        parts = of_steps, table[["norm"]][of_weights], table
        worst = [float(each.to_numpy().max()) for each in parts]
        assert (max(worst[:2]) < 1e-6, worst[2] < 1e-5) == (True, True), (loop, worst)
        lines.append([loop, str(size), *(f"{each:.0e}" for each in worst)])
    (tmp_path / "table.md").write_text("".join(f"| {' | '.join(each)} |\n" for each in lines))


def test_a_sample_of_each_process_has_the_numbers_of_all_tokens(script, tmp_path):
    """Within the sampling."""

    def task(number):
        with_torch(script(tmp_path / "two", 2), number, 2, tokens=24)

    on_several(tmp_path, task)
    with_torch(script(tmp_path / "all"), 0, 1)
    two, of_all = (load_measured(tmp_path / name / "results/mine") for name in ("two", "all"))
    assert two.cells["batch_size"].item() == ROWS
    ratio = probed(two)["rms"] / probed(of_all)["rms"]
    is_sampled = ratio.index.get_level_values("site").isin(["adapter_out", "adapter_in_grad"])
    assert ratio[~is_sampled].to_numpy() == pytest.approx(1, 1e-5)
    # 192 of 288 tokens, whose energies differ by less than themselves.
    assert ratio[is_sampled].to_numpy() == pytest.approx(1, 0.1)
    assert (ratio[is_sampled] - 1).abs().max() > 1e-4, "a sample"


@pytest.mark.parametrize(("loop", "killed"), [(with_torch, 1), (with_fully_shard, 0)])
def test_a_process_that_is_killed(loop, killed, script, tmp_path):
    """The other one ends, and the rows that all had are kept."""

    def task(number):
        def see(step):
            if (number, step) == (killed, 2):
                os.kill(os.getpid(), signal.SIGKILL)

        loop(script(tmp_path, 2), number, 2, see)

    found = on_several(tmp_path, task)
    assert (found[killed], type(found[1 - killed])) == (None, RuntimeError)
    tables = load_measured(tmp_path / "results/mine")
    assert tables.cells["status"].tolist() == ["failed" if killed else "interrupted"]
    assert tables.metrics["step"].tolist() == [0]
    assert sorted(set(tables.probes["step"])) == [0, 1]


class Collectives(TorchDispatchMode):
    """Counts collectives, and the bytes that this process gives to each, by step."""

    def __init__(self):
        super().__init__()
        self.steps: list[Counter[int]] = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # its own collectives come here
        if self.steps and re.match(r"_?c10d(?!.*(wait|wrap))", str(call)):
            given = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.steps[-1][sum(x.numel() * x.element_size() for x in given)] += 1
        return call(*args, **(kwargs or {}))


def test_collectives(script, tmp_path):
    """Those that a recording adds to the loop's own. Writes a table of docs/processes.md."""
    kinds = {
        "the first update": 0,
        "a probed one": 1,
        "a plain one": 2,
        "the end, or each tenth: two rows": 3,
    }

    def counted(loop, number):
        with Collectives() as calls:
            loop(script(tmp_path, 2), number, 2, lambda _: calls.steps.append(Counter()), steps=[1])
        return calls.steps

    def task(number):
        loops, record = (with_torch, with_fully_shard), study.record
        recorded = [counted(loop, number) for loop in loops]
        study.record = lambda *_, **__: nullcontext()
        alone = [counted(loop, number) for loop in loops]
        study.record = record
        both = [list(zip(*each, strict=True)) for each in zip(recorded, alone, strict=True)]
        assert not any(less - more for loop in both for more, less in loop)
        return [[more - less for more, less in loop] for loop in both]

    lines = ["| step | DDP: collectives, bytes | `fully_shard` |", "|---|---|---|"]
    ddp, fsdp2 = on_several(tmp_path, task)[0]
    for kind, step in kinds.items():
        each = (f"{of[step].total()}, {sum(of[step].elements())}" for of in (ddp, fsdp2))
        lines.append(f"| {kind} | {' | '.join(each)} |")
    (tmp_path / "table.md").write_text("\n".join(lines) + "\n")
    assert ddp == [Counter([16, 24, 4]), Counter([1344, 12096, 48]), Counter(), Counter([96])]
    assert (fsdp2[0], *fsdp2[2:]) == (ddp[0], *ddp[2:])


def joined(model):
    """DDP inside its ``join()``."""
    model = DistributedDataParallel(model)
    model.join().__enter__()
    return model


def test_refusals(script, tmp_path):
    """Real ones: FSDP1, gradients averaged by hand, ``model.join()``, two models in two
    processes."""
    fsdp1 = partial(FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True)
    by_hand = {"wrap": lambda model: model, "average": partial(averaged, is_told=False)}
    loops = {"wrap": fsdp1}, by_hand, {"wrap": joined}, {"wrap": lambda model: model}

    def task(number):
        said = []
        for options in loops:
            with pytest.raises(StudyError) as error:
                with_torch(script(tmp_path, 2), number, 2, **options)
            said.append(str(error.value))
        return said

    for fsdp1, by_hand, join, separate in on_several(tmp_path, task):
        assert fsdp1 == f"FSDP1 flattens weights: {INSTEAD}"
        assert by_hand.startswith("the loop combines the gradients of 2 processes itself")
        assert "recording.gradients()" in by_hand
        assert join.startswith("model.join() lets processes make different numbers of updates")
        assert separate.startswith("the gradients of 2 processes differ: train one model, in DDP")


def test_the_policy_of_fsdp2_is_the_precision(script, tmp_path):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def task(number):
        names = script(tmp_path, 2)
        for block in names["peft_model"].base_model.model.model.layers:
            fully_shard(block, mp_policy=policy)
        names["optimizer"] = sgd(fully_shard(names["peft_model"], mp_policy=policy))
        with_torch(names, number, 2)

    on_several(tmp_path, task)
    assert load_measured(tmp_path / "results/mine").cells["precision"].tolist() == ["bf16"]


@pytest.mark.parametrize("line", ["recording.sync()", "optimizer.state_dict()"])
def test_a_run_that_resumes_from_a_checkpoint(line, script, tmp_path):
    """The loop of the page, killed at step 15 after a checkpoint at 12. Without its line, the
    record says which rows are missing."""
    [code] = [block for block in BLOCKS if "recording.sync()" in block]
    steps, checkpoint, killed, sync = 20, 12, 15, "recording.sync()"

    def task(number, start):
        names = script(tmp_path, 2)
        model = DistributedDataParallel(names["peft_model"])
        batches = [{"input_ids": r[number::2], "labels": r[number::2]} for r in ids]

        def loader():
            for step in range(start, steps):
                if step == killed and not start:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batches[step]

        def save(step):
            if number == 0 and step == checkpoint:
                state = names["peft_model"].state_dict(), names["optimizer"].state_dict()
                torch.save(state, "checkpoint.pt")

        def record(*given):
            return study.record(*given, steps=[0], seed=0, total=steps, start=start)

        for name, weight in names["peft_model"].named_parameters():
            if "lora_B" in name:
                nn.init.zeros_(weight)  # a resumed run is known by its init
        if start:
            weights, state = torch.load("checkpoint.pt")
            names["peft_model"].load_state_dict(weights)
            names["optimizer"].load_state_dict(state)
        names |= {"study": SimpleNamespace(record=record), "save_checkpoint": save}
        names |= {"model": model, "loader": loader(), "save_every": checkpoint}
        exec(code.replace(sync, line), names)

    ids = torch.stack([row["input_ids"] for row in rows()])[: 3 * steps].view(steps, 3, -1)
    assert on_several(tmp_path, partial(task, start=0)) == [None, None]
    assert load_measured(tmp_path / "results/mine").cells["status"].item() == "interrupted"
    on_several(tmp_path, partial(task, start=checkpoint))
    tables = load_measured(tmp_path / "results/mine")
    assert tables.cells["status"].item() == "complete"
    missing = sorted(set(range(steps)) - set(tables.metrics["step"]))
    [record] = load_records(tmp_path / "results/mine")
    if line == sync:
        assert (missing, record["training_note"]) == ([], "")
    else:
        assert missing
        assert sync in record["training_note"]
