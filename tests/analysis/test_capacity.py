"""Bits that adapters stored, from losses whose bits are known."""

import numpy as np
import pandas as pd
import pytest

from study.analysis.capacity import capacity, stored_bits
from study.figures import FIGURES
from study.report.answer import answer, answer_table
from study.store import StudyTables
from tests.figures.checklist import problems

STRINGS, BATCH, STEPS, SIZE, BITS = 100, 30, 12, 500, 1.5


def tables(tokens: int = 21) -> StudyTables:
    """Adapters of ranks 1 to 8 that store 1.5 bits a parameter, at most all bits of the strings.

    The lower rate stores half of it. The last pass has four steps.
    """
    cells, metrics, probes = [], [], []
    for rank in (1, 2, 4, 8):
        for lr, share in ((1e-3, 0.5), (1e-2, 1.0)):
            for seed in (0, 1, 2):
                name = f"{rank} {lr} {seed}"
                bits = min(share * BITS * SIZE * rank * 1.01**seed, STRINGS * 96)
                about = {"data": "random_strings", "optimizer": "adamw", "scaling": "lora"}
                about |= {"status": "complete", "max_samples": STRINGS + 1, "heldout": 1}
                about |= {"batch_size": BATCH, "accumulation": 1, "steps_done": STEPS, "seed": seed}
                cells.append({"cell_id": name, "rank": float(rank), "lr": lr, **about})
                loss = (STRINGS * 96 - bits) * np.log(2) / (STRINGS * 17)
                for step in range(STEPS):
                    row = {"cell_id": name, "step": step, "tokens": (step + 1) * BATCH * tokens}
                    metrics.append({**row, "loss": loss if step >= STEPS - 4 else 4.2})
                for layer, sides in (("a", (100, 50)), ("b", (150, 200))):
                    size = dict(zip(("d_in", "d_out"), sides, strict=True))
                    probes.append({"cell_id": name, "layer": layer, **size})
    return StudyTables(*(pd.DataFrame(rows) for rows in (cells, metrics, probes)))


def test_bits_and_their_slope_are_those_of_the_losses() -> None:
    found = stored_bits(tables())
    assert set(found["parameters"]) == {500, 1000, 2000, 4000}
    assert found["bits"].max() == pytest.approx(4000 * BITS * 1.01**2)
    (row,) = capacity(tables()).to_dict("records")
    assert row["exponent"] == pytest.approx(1.0)
    assert row["per_parameter"] == pytest.approx(BITS * (1 + 1.01 + 1.01**2) / 3)
    assert (row["seeds"], row["rank_min"], row["rank_max"]) == (3, 1, 8)


def test_an_adapter_that_stored_nearly_all_bits_does_not_count() -> None:
    """12,000 bits of rank 16 would be more than the 9,600 that were offered."""
    bent = tables()
    bent.probes["d_in"] *= 2
    bent.metrics.loc[bent.metrics["cell_id"].str.startswith("8 0.01"), "loss"] = 0.0
    (row,) = capacity(bent).to_dict("records")
    assert row["rank_max"] == 4


def test_another_tokenizer_has_no_bits() -> None:
    assert stored_bits(tables(tokens=16))["bits"].isna().all()
    assert capacity(tables(tokens=16)).empty


def test_report_and_figure_show_a_study_of_several_numbers_of_strings() -> None:
    few, many = tables(), tables()
    for table in (many.cells, many.metrics, many.probes):
        table["cell_id"] = "of 200 " + table["cell_id"]
    many.cells["max_samples"] = 2 * STRINGS + 1
    names = ("cells", "metrics", "probes")
    both = {n: pd.concat([getattr(few, n), getattr(many, n)], ignore_index=True) for n in names}
    study = StudyTables(**both)
    first, _ = answer(study)
    assert first.startswith(
        "From rank 1 to rank 8 the bits stored go with the parameters to the power 1.00 [1.00, "
        "1.00], at 1.52 [1.48, 1.55] bits a parameter (max_samples=101; 3 seeds; random_strings, "
    )
    assert {row["stored"] for row in answer_table(study).rows} >= {"4 %", "8 %", "16 %", "63 %"}
    drawn = FIGURES["bits_stored"](study)
    assert problems(drawn) == []
    assert "9.6 kbit offered" in {text.get_text() for text in drawn.axes[0].texts}
