"""``--plan=8xh100``: what a sweep costs on devices that are not here, and on disk."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.config import CellConfig, ModelConfig
from study.errors import StudyError
from study.models import describe
from study.store import CHECKPOINTS
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.sweeps.estimate import (
    Fleet,
    cell_price,
    disk_price,
    fleet,
    fold_bytes,
    full_estimate,
    least_devices,
    makespan,
)
from study.training.checkpoint import Snapshot

Build = Callable[..., CellConfig]
GIB = 2**30


def test_the_papers_own_cell_has_5_billion_weights(cell: Build) -> None:
    shape = ("model=shape", "data.sequence_length=512", "precision=bf16", "probes.steps=null")
    config = cell(*shape, "probes.every=null", "adapter.rank=2048", "optimizer=adamw")
    need = full_estimate(config, describe(config.model))
    per_block = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert need.weights == 32 * 2048 * per_block
    # float32 A and B, their gradients, two moments, and a bf16 copy for the products
    assert need.own_bytes - need.activation_bytes == (4 * 4 + 2) * need.weights
    assert need.base_bytes == 2 * 8_030_261_248
    assert least_devices(need, 0.9 * 79 * GIB) == 2


def test_devices_divide_all_but_the_ends_and_the_casts(cell: Build) -> None:
    shape = ("model=shape", "model.path=llama-3.1-70b", "precision=bf16", "adapter.rank=2048")
    config = cell(*shape, "data.sequence_length=512", "train.batch_size=8", "optimizer=adamw")
    need = full_estimate(config, describe(config.model))
    assert need.head_bytes == 2 * 8192 * 128_256
    assert need.cast_bytes == 2 * need.weights
    eight, many = need.divided(8), need.divided(64)
    whole = 2 * need.head_bytes + 2 * need.block_bytes  # the head, and what is put together
    assert eight.base_bytes - whole == (need.base_bytes - need.head_bytes) // 8
    assert (eight.activation_bytes, many.activation_bytes) == (need.activation_bytes // 8,) * 2
    assert eight.flops == many.flops == need.flops / 8, "more devices than sequences wait"
    assert fold_bytes([many]) < fold_bytes([eight])
    assert least_devices(need, 0.9 * 79 * GIB) is None, "the casts are whole on every device"
    config.train.checkpointing = True
    again = full_estimate(config, describe(config.model))
    assert again.cast_bytes == need.cast_bytes // 80
    assert again.activation_bytes < need.activation_bytes / 10
    assert again.flops == pytest.approx(need.flops * 4 / 3, rel=0.1)
    assert least_devices(again, 0.9 * 79 * GIB) == 16


def test_a_config_json_is_a_shape(tmp_path: Path) -> None:
    given = describe(ModelConfig("tiny"))
    from study.models import tiny

    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    for path in (tmp_path, tmp_path / "config.json"):
        card = describe(ModelConfig("shape", str(path)))
        assert (card.linears, card.shapes, card.head) == (given.linears, given.shapes, given.head)
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(StudyError, match=r"can't be used .*nothing"):
        describe(ModelConfig("shape", str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StudyError, match="has no model_type"):
        describe(ModelConfig("shape", str(tmp_path)))
    with pytest.raises(StudyError, match=r"is no shape: choose from llama-2-7b, "):
        describe(ModelConfig("shape", "llama-4"))


@pytest.mark.parametrize(
    ("jobs", "devices", "seconds"),
    [
        ([(1, 5.0), (1, 4.0), (1, 3.0), (1, 3.0)], 2, 8.0),
        ([(1, 5.0)], 512, 5.0),
        ([(2, 3.0), (1, 2.0), (1, 2.0)], 2, 5.0),
        ([(4, 3.0), (1, 2.0)], 2, 2.0),
        ([], 3, 0.0),
    ],
)
def test_the_longest_job_starts_first(
    jobs: list[tuple[int, float]], devices: int, seconds: float
) -> None:
    assert makespan(jobs, devices) == seconds


def test_devices_are_a_number_and_a_name() -> None:
    assert fleet("8xh100") == Fleet(8, "h100")
    assert fleet("a100") == Fleet(1, "a100")
    assert Fleet(1, "h100").rate("bf16") == pytest.approx(0.7 * 989e12)
    for wrong in ("8xh1000", "h100x8", "8 h100", "0xh100", "-1xh100"):
        with pytest.raises(StudyError):
            fleet(wrong)


def test_a_cell_takes_its_flops_over_the_assumed_speed(cell: Build, tmp_path: Path) -> None:
    [made] = plan([cell(f"results_dir={tmp_path}", "precision=bf16")])
    price = cell_price(made, Fleet(8, "h100"))
    assert price.seconds == pytest.approx(price.need.flops / (0.5 * 0.7 * 989e12))
    assert price.devices == 1


def test_bytes_on_disk_are_those_of_a_trained_cell_within_a_factor_of_two(
    cell: Build, tmp_path: Path
) -> None:
    cells = plan(
        [
            cell(
                f"results_dir={tmp_path}",
                "train.steps=20",
                "train.save_adapter=true",
                "probes.steps=null",
                f"probes.every={every}",
                f"adapter.rank={rank}",
            )
            for every, rank in ((1, 4), (10, 64))
        ]
    )
    sweep.run(cells)
    price = disk_price(cells)
    files = [file for made in cells for file in made.folder.rglob("*") if file.is_file()]
    adapters = [file for file in files if file.suffix == ".safetensors"]
    tables = sum(file.stat().st_size for file in files if file not in adapters)
    assert price.tables / 2 < tables < price.tables * 2
    assert sum(file.stat().st_size for file in adapters) == pytest.approx(price.adapters, rel=0.05)
    assert not any(CHECKPOINTS in file.parts for file in files), "they are gone after training"


def test_a_checkpoint_is_as_large_as_its_state(
    cell: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Snapshot.checkpoint
    monkeypatch.setattr(
        Snapshot, "checkpoint", lambda self, *a: sizes.append(self.nbytes) or real(self, *a)
    )
    cells = plan([cell(f"results_dir={tmp_path}", "checkpoint.every=1", "optimizer=adamw")])
    sweep.run(cells)
    assert 2 * sizes[-1] == pytest.approx(disk_price(cells).checkpoints, rel=0.05)


def test_a_sweep_is_priced_for_devices_that_are_not_here(
    study_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("train", "-m", "model=shape", "preset=gpu", "adapter.rank=16,2048", "seed=0,1")
    ran = study_cli(*line, "--plan=8xh100", "probes.stats=[rms]")
    assert ran.code == 0, ran.err
    rows = [text.split() for text in ran.out.splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["16", "2"], ["2048", "2"]]
    assert [row[-2] for row in rows[1:3]] == ["1", "4"], "devices a cell"
    assert all(10 < float(row[-1]) < 79 for row in rows[1:3]), "GB a device"
    assert "2 cells too large for one h100" in ran.out
    assert "assumed: NVIDIA H100" in ran.out
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_the_logits_of_a_large_vocabulary_and_the_process(
    study_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 has 262,144 tokens: logits of one chunk, their softmax and their gradient."""
    monkeypatch.chdir(tmp_path)
    gemma = {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(gemma))
    line = ("model=shape", "model.path=config.json", "device=cpu", "probes.steps=null")
    ran = study_cli("train", *line, "--plan")
    assert ran.code == 0, ran.err
    found = re.search(
        r"memory of a process: about ([\d.]+) GB, of which ([\d.]+) GB are the program, the "
        r"tokenizer and the data, ([\d.]+) GB the base and ([\d.]+) GB the largest cell",
        ran.out,
    )
    assert found, ran.out
    total, program, base, cell = map(float, found.groups())
    assert cell >= 0.2, "three times 64 MiB of logits"
    assert program > 0.2
    assert total == pytest.approx(program + base + cell, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plan=8xb300"], "unknown device of --plan 'b300': choose from h200, h100"),
        (["--plan=many"], "unknown device of --plan 'many'"),
        (["model=shape", "train.steps=1"], "model=shape has no weights: add --plan"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str],
    says: str,
    study_cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = study_cli("train", *arguments)
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err
