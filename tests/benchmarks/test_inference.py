"""``study bench inference``: what the forms compute, their memory, and their cost over the base."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import inference
from benchmarks.inference import COLUMNS, built, next_token
from benchmarks.summary import SECTIONS, inference_costs
from study.config import ModelConfig
from study.models import FrozenBase, load_base, tiny
from tests.models.small import gpt2

IDS = torch.arange(30)[None]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_merged_and_unmerged_compute_the_same_and_differ_from_the_base(
    tiny_base: FrozenBase, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "B_STD", 0.3)  # above rounding
    base = tiny_base
    if family == "gpt2":  # its linears keep their weights transposed
        AutoModelForCausalLM.from_config(gpt2()).save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        base = load_base(ModelConfig("hf", str(tmp_path)), torch.device("cpu"), "float32")
    logits = {}
    for name in ("base", "control", "merged", "unmerged"):
        torch.manual_seed(0)
        logits[name] = next_token(built(base, (name, "rslora", 8)), IDS)
    plain = base.model(IDS).logits[:, -1]
    torch.testing.assert_close(logits["base"], plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits["base"], logits["control"])
    torch.testing.assert_close(logits["merged"], logits["unmerged"], rtol=1e-4, atol=1e-4)
    assert (logits["merged"] - plain).abs().max() > 0.01


def made_up(
    factor: Callable[[str, int], float], noise: float = 0.0, rounds: int = 8
) -> pd.DataFrame:
    """Timings of a base of 10 ms. Over the run the machine becomes slower by half."""
    rng, rows = np.random.default_rng(0), []
    forms = [("base", "", 0)] * 3 + [("control", "", 0)]
    forms += product(("merged", "unmerged"), ("lora", "rslora"), (4, 64))
    for number, form, (phase, tokens) in product(
        range(rounds), forms, (("prefill", 256), ("decode", 1))
    ):
        slower = (1 + 0.5 * number / rounds) * (1 + noise * rng.standard_normal())
        seconds = 0.01 * factor(form[0], form[2]) * slower
        memory = 2.0 if form[0] == "unmerged" else 1.5
        rows.append((number, *form, phase, tokens, seconds, memory))
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(
        model="made up", precision="float32", device="cpu", device_name="a machine", threads=2
    )


def test_a_ratio_compares_with_the_base_of_its_round() -> None:
    timings = made_up(lambda form, rank: 1 + rank / 64 if form == "unmerged" else 1.0)
    costs = inference_costs(timings).set_index(["phase", "form", "scaling", "rank"])
    row = costs.loc[("prefill", "unmerged", "lora", 64)]
    assert tuple(row[["ratio", "low", "high"]]) == pytest.approx((2, 2, 2))
    is_unmerged = costs.index.get_level_values("form") == "unmerged"
    assert costs.loc[~is_unmerged, "same"].all()
    assert not costs.loc[is_unmerged, "same"].any()
    assert (
        "merged 1.000 [1.000, 1.000] of the base, the same within 3%; each 1.000 to 1.000, 4 of 4 "
        "shown to be the same on their own; unmerged 1.06 to 2.00" in SECTIONS["inference"](timings)
    )


def test_the_command_prints_and_writes(
    works: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "ROUNDS", 3)
    ran = works("bench", "inference", "--model=tiny", "--ranks=2,8")
    assert "prefill: merged" in ran.out
    table = pd.read_parquet(here / "results/bench/inference.parquet")
    assert set(table["form"]) == {"base", "control", "merged", "unmerged"}
    monkeypatch.setattr(inference, "load_base", lambda *_: pytest.fail("a model was loaded"))
    assert works("bench", "--read").out == ran.out
