"""Loops on several processes: their recordings are those of one process with the same batches.

The loops of docs/trainers.md run as they stand there.
"""

import os
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import study
from study.config import CellConfig, ModelConfig
from study.errors import StudyError
from study.models import load_tokenizer
from study.store import load_records
from tests.together import together

accelerate, datasets, lightning, _, trl = map(
    pytest.importorskip, ("accelerate", "datasets", "lightning", "peft", "trl")
)

PAGE = (Path(__file__).parents[2] / "docs/trainers.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
STEPS, PARTS, ROWS = 3, 4, 6
"""Updates, micro-batches of each, and rows of a micro-batch in all processes."""
KEYS, HOW = ["step", "layer", "site"], {"fully_shard": "FSDP2"}
NUMBERS = ["step", "tokens", "loss", "grad_norm", "clip_factor", "lr"]
Names = dict[str, Any]


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 90, (STEPS * PARTS * ROWS, 12), generator=generator)
    return [{"input_ids": each, "labels": each} for each in ids]


def with_torch(
    names: Names,
    number: int,
    size: int,
    see: Any = lambda step: None,
    wrap: Any = DistributedDataParallel,
    **options: Any,
) -> None:
    """DDP and ``no_sync``; or a model that FSDP2 divides."""
    model, optimizer = names["peft_model"], names["optimizer"]
    weights = optimizer.param_groups[0]["params"]
    model = model if size == 1 or hasattr(weights[0], "to_local") else wrap(model)
    ids_SPBT = torch.stack([row["input_ids"] for row in rows()]).view(STEPS, PARTS, ROWS, -1)
    with study.record("results/mine", model, optimizer, **{"steps": [0, 1], **options}):
        for step, ids_PBT in enumerate(ids_SPBT):
            see(step)
            for part, ids_BT in enumerate(ids_PBT):
                ids_BT = ids_BT[number::size]
                is_last = part == PARTS - 1 or not hasattr(model, "no_sync")
                with nullcontext() if is_last else model.no_sync():
                    (model(input_ids=ids_BT, labels=ids_BT).loss / PARTS).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def with_fully_shard(names: Names, number: int, size: int) -> None:
    model = names["peft_model"]
    if size > 1:
        for block in model.base_model.model.model.layers:
            fully_shard(block)
        names["optimizer"] = sgd(fully_shard(model))
    with_torch(names, number, size)


def of_page(text: str) -> Callable[..., None]:
    """The only block of the page with ``text``."""
    [code] = [code for code in BLOCKS if text in code]
    return lambda names, *_: exec(compile(code, "docs/trainers.md", "exec"), names)


def with_lightning(names: Names, number: int, size: int) -> None:
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


def with_trainer(names: Names, number: int, size: int, **packed: Any) -> None:
    """The transformers Trainer, or TRL's if there are ``packed`` options."""
    options: Names = {
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


def with_sft(names: Names, number: int, size: int) -> None:
    packed = {"packing": True, "packing_strategy": "wrapped", "max_length": 16, "bf16": False}
    with_trainer(names, number, size, **packed)


LOOPS: dict[str, Callable[..., None]] = {
    "torch": with_torch,
    "fully_shard": with_fully_shard,
    "accelerate": of_page("accelerator.prepare"),
    "lightning": with_lightning,
    "trainer": with_trainer,
    "sft": with_sft,
}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.5)


@pytest.fixture(scope="module")
def script(cell: Callable[..., CellConfig], peft_model: Callable[..., Any]) -> Callable[..., Names]:
    """``script(folder, size)``: works in a new folder, with what a script has before the lines of
    the page. B is not 0, so that updates of A are more than rounding."""

    def names(folder: Path, size: int = 1) -> Names:
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


def on_several(folder: Path, task: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What ``task(number)`` returns in each process; None if it was killed."""

    def joined(number: int) -> Any:
        dist.init_process_group("gloo")
        found = task(number)
        dist.destroy_process_group()
        return found

    return together(joined, folder, size)


@pytest.mark.parametrize(("size", "loops"), [(2, [*LOOPS]), (3, ["torch", "fully_shard"])])
def test_numbers_are_those_of_one_process_with_the_same_batches(
    size: int, loops: list[str], script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pd.DataFrame()  # of the loop of torch

    def task(number: int) -> None:
        for name in loops:
            LOOPS[name](script(tmp_path / "several" / name, size), number, size)

    monkeypatch.chdir(tmp_path)
    found = on_several(tmp_path, task, size)
    assert found == [None] * size, (tmp_path / "stderr-0").read_text()[-2000:]
    for loop in loops:
        LOOPS[loop](script(tmp_path / "alone" / loop), 0, 1)
        places = [tmp_path / place / loop / "results/mine" for place in ("several", "alone")]
        ours, theirs = map(study.load, places)
        plain = theirs.metrics[NUMBERS] if loop == "torch" else plain
        assert (plain["clip_factor"] < 1).all(), "clipping is part of this test"
        assert ours.cells["cell_id"].tolist() == theirs.cells["cell_id"].tolist(), loop
        [record] = load_records(places[0])
        assert (record["status"], record["processes"]) == ("complete", size)
        assert record["trained_by"].endswith(f" on {size} processes ({HOW.get(loop, 'DDP')})")
        exactly: Names = {"rtol": 1e-6, "atol": 0, "obj": loop}
        pd.testing.assert_frame_equal(ours.metrics[NUMBERS], theirs.metrics[NUMBERS], **exactly)
        if loop not in ("trainer", "sft"):  # they order batches
            pd.testing.assert_frame_equal(theirs.metrics[NUMBERS], plain, rtol=1e-5, obj=loop)
        one, other = (
            tables.probes.drop(columns=["cell_id", "kind", "batch"])
            .astype(dict.fromkeys(KEYS[1:], str))
            .set_index(KEYS)
            .sort_index()
            for tables in (ours, theirs)
        )
        of_weights = one.index.get_level_values("site").str.contains("grad|update")
        pd.testing.assert_series_equal(
            one["norm"][of_weights], other["norm"][of_weights], **exactly
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-5, atol=1e-12, obj=loop)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed(killed: int, script: Any, tmp_path: Path) -> None:
    """The other one ends, and the rows that all had are kept."""

    def task(number: int) -> None:
        def see(step: int) -> None:
            if (number, step) == (killed, 2):
                os.kill(os.getpid(), signal.SIGKILL)

        with_torch(script(tmp_path, 2), number, 2, see)

    found = on_several(tmp_path, task)
    assert (found[killed], type(found[1 - killed])) == (None, RuntimeError)
    tables = study.load(tmp_path / "results/mine")
    assert tables.cells["status"].tolist() == ["failed" if killed else "interrupted"]
    assert tables.metrics["step"].tolist() == [0]
    assert sorted(set(tables.probes["step"])) == [0, 1]


def test_collectives_and_a_refusal(script: Any, tmp_path: Path) -> None:
    """The bytes of each step's collectives, and a loop without DDP."""

    def task(number: int) -> Any:
        calls: list[list[int]] = []
        reduce = dist.all_reduce

        def counted(x: Any, *options: Any) -> None:
            calls[-1].append(x.numel() * x.element_size())
            reduce(x, *options)

        dist.all_reduce = counted
        with_torch(script(tmp_path, 2), number, 2, lambda step: calls.append([]), steps=[1])
        dist.all_reduce = reduce
        names = script(tmp_path, 2)
        with pytest.raises(StudyError) as error:
            with_torch(names, number, 2, wrap=lambda model: model)
        return calls, str(error.value)

    calls = [
        [16, 8, 4],
        [1344, 9408, 32],
        [64],
    ]  # the opening, the probed step, the rows at the end
    why = "the gradients of 2 processes differ: train one model, in DDP or FSDP2, or leave"
    for of_process, refusal in on_several(tmp_path, task):
        assert of_process == calls
        assert refusal.startswith(why)
