"""Bits that adapters stored, from losses whose bits are known."""

import numpy as np
import pandas as pd
import pytest

from study.analysis.advice import committed
from study.analysis.answers import answer, answer_table
from study.analysis.capacity import best_stored, capacity, departures, stored_bits
from study.analysis.expectations import compare
from study.config.expectations import FLAT_IN_WORDS, read_entry
from study.figures import FIGURES
from study.store import StudyTables
from tests.figures.checklist import problems

STRINGS, BATCH, STEPS, SIZE, BITS = 100, 30, 12, 500, 1.5


def tables(tokens=21):
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
                about |= {
                    "status": "complete",
                    "seconds": 60.0,
                    "max_samples": STRINGS + 1,
                    "heldout": 1,
                }
                about |= {"supervised": np.nan, "steps": STEPS}
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


def test_bits_and_their_slope_are_those_of_the_losses():
    found = stored_bits(tables())
    assert set(found["parameters"]) == {500, 1000, 2000, 4000}
    assert found["bits"].max() == pytest.approx(4000 * BITS * 1.01**2)
    assert set(found["passes"]) == {round(STEPS * BATCH / STRINGS)}
    best = best_stored(tables())
    assert (set(best["lr"]), len(best)) == ({1e-2}, 4 * 3), "the lower rate stores half"
    lucky = tables()
    lucky.metrics.loc[lucky.metrics["cell_id"] == "1 0.001 0", "loss"] = 0.0
    one = lucky.cells.query("lr > 1e-3 or seed == 0")
    lucky = StudyTables(one, lucky.metrics, lucky.probes)
    assert set(best_stored(lucky)["lr"]) == {1e-2}, "one seed is no match for three"
    (row,) = capacity(tables()).to_dict("records")
    assert row["exponent"] == pytest.approx(1.0)
    assert row["per_parameter"] == pytest.approx(BITS * (1 + 1.01 + 1.01**2) / 3)
    assert (row["seeds"], row["rank_min"], row["rank_max"]) == (3, 1, 8)


def test_an_adapter_that_stored_nearly_all_bits_does_not_count():
    """12,000 bits of rank 16 would be more than the 9,600 that were offered."""
    bent = tables()
    bent.probes["d_in"] *= 2
    bent.metrics.loc[bent.metrics["cell_id"].str.startswith("8 0.01"), "loss"] = 0.0
    (row,) = capacity(bent).to_dict("records")
    assert row["rank_max"] == 4
    bent.metrics.loc[~bent.metrics["cell_id"].str.startswith("1 "), "loss"] = 0.0
    assert "is not known: two ranks must store more" in answer(bent)[0]


def joined(*studies):
    """One study with the cells of several."""
    frames = zip(*((study.cells, study.metrics, study.probes) for study in studies), strict=True)
    return StudyTables(*(pd.concat(of_studies, ignore_index=True) for of_studies in frames))


def test_two_rules_are_two_settings():
    one, other = tables(), tables()
    other.cells["scaling"] = "rslora"
    other.cells["cell_id"] = "rs" + other.cells["cell_id"]
    for table in (other.metrics, other.probes):
        table["cell_id"] = "rs" + table["cell_id"]
    rows = answer_table(joined(one, other)).rows
    assert {row["scaling"] for row in rows} == {"lora", "rslora"}
    assert len(rows) == 2 * len(answer_table(one).rows)


@pytest.mark.parametrize(("added", "verdict"), [(1.02, "agrees"), (1.1, "condition not met")])
def test_an_expectation_of_flat_runs_is_about_those_that_twice_the_steps_leave_alone(
    added, verdict
):
    """Those of twice the steps are not known to be flat themselves."""
    short, long = tables(), tables()
    for table in (long.cells, long.metrics, long.probes):
        table["cell_id"] = "long " + table["cell_id"]
    long.cells[["steps", "steps_done"]] *= 2
    stored = STRINGS * 96 - long.metrics["loss"] * STRINGS * 17 / np.log(2)
    long.metrics["loss"] = (STRINGS * 96 - added * stored) * np.log(2) / (STRINGS * 17)
    long.metrics["step"] += STEPS
    long.metrics["tokens"] += STEPS * BATCH * 21
    about = {"what": "bits_per_parameter", "optimizer": "adamw", "predicted": BITS}
    about |= {"tolerance": 0.2, "source": "s", "refuted_by": f"fewer bits {FLAT_IN_WORDS}"}
    found = {row.curve: row.verdict for row in compare([read_entry(about)], joined(short, long))}
    assert set(found.values()) == {verdict, "condition not met"}
    assert [row.verdict for row in compare([read_entry(about)], short)] == ["condition not met"]


def test_another_tokenizer_needs_the_number_of_its_tokens():
    other = tables(tokens=16)
    assert stored_bits(other)["bits"].isna().all()
    assert capacity(other).empty
    other.cells["supervised"] = STRINGS * 17 // 2
    other.metrics["loss"] *= 2
    assert stored_bits(other)["bits"].tolist() == pytest.approx(stored_bits(tables())["bits"])


def test_a_loss_above_that_of_random_bytes_stores_none():
    early = tables()
    early.metrics["loss"] = 7.0
    shown = {(row["stored"], row["bits a parameter"]) for row in answer_table(early).rows}
    assert shown == {("0 %", "none")}


def test_report_and_figure_show_a_study_of_random_strings():
    few, many = tables(), tables()
    assert answer(few)[0].startswith("Adapters of rank 1 to 8 store 1.52 ["), "bits first"
    assert answer(few)[0].count("3 seeds") == 1
    for table in (many.cells, many.metrics, many.probes):
        table["cell_id"] = "of 200 " + table["cell_id"]
    many.cells["max_samples"] = 2 * STRINGS + 1
    study = joined(few, many)
    first, _ = answer(study)
    assert first.startswith(
        "Adapters of rank 1 to 8 store 1.52 [1.48, 1.55] bits a parameter. The bits go with the "
        "parameters to the power 1.00 [1.00, 1.00] (4 passes over 9,600 bits; random_strings, "
    )
    assert {row["stored"] for row in answer_table(study).rows} >= {"8 %", "16 %", "63 %"}
    drawn = FIGURES["bits_stored"](study)
    assert problems(drawn) == []
    assert "9.6 kbit" in {text.get_text() for text in drawn.axes[0].texts}


def falling(behind, tokens, seeds=2):
    """Runs of 320 steps, whose losses fall from 2 by 1/320 a step. ``behind``: by rank, the step
    from which the loss falls half as fast. Batches are noisy, the same at every rank."""
    cells, metrics, probes = [], [], []
    for rank in (*behind, 64):
        for lr, worse in ((1e-3, 0.0), (1e-2, 0.2)):
            for seed in range(seeds):
                noise = np.random.default_rng(seed).normal(0, 0.1, 321)
                about = {
                    "cell_id": f"{rank} {lr} {seed}",
                    "rank": float(rank),
                    "lr": lr,
                    "seed": seed,
                }
                about |= {"status": "complete", "optimizer": "adamw", "scaling": "lora"}
                about |= {"supervised": np.nan, "train_rows": np.nan}
                about |= {"batch_size": 2, "accumulation": 1}
                cells.append(about | {"gamma": 1.0, "alpha": 16.0, "steps": 320})
                for step in range(321):
                    slow = max(0, step - behind.get(rank, 320)) / 640
                    loss = 2 - step / 320 + slow + worse + noise[step]
                    row = {"cell_id": about["cell_id"], "step": step, "tokens": (step + 1) * tokens}
                    ends = {0: 2.0, 320: 1.0 + slow + worse}
                    metrics.append({**row, "loss": loss, "eval_loss": ends.get(step, np.nan)})
                size = {"layer": "a", "d_in": 100, "d_out": 150}
                probes.append({"cell_id": about["cell_id"], **size})
    return StudyTables(*(pd.DataFrame(rows) for rows in (cells, metrics, probes)))


def test_a_rank_falls_behind_where_its_curve_leaves_that_of_the_highest():
    held = committed()["capacity"]["bits"]
    found = departures(falling({1: 64, 16: 240}, tokens=20)).set_index("rank")
    assert found["steps"].tolist() == [320, 320]
    # The curve lies 5 % of what is learned, 1/20 nat, above after 32 more steps.
    assert found.loc[1, "step"] == pytest.approx(64 + 32, abs=8)
    assert found.loc[16, "step"] == pytest.approx(240 + 32, abs=8)
    for name, bits in zip(("expected", "expected_low", "expected_high"), held, strict=True):
        # step / 320 nats have been learned of each of 20 step tokens.
        step = np.sqrt(250 * bits * np.log(2) * 320 / 20)
        assert found.loc[1, name] == pytest.approx(step, rel=0.25)
    assert found.loc[16, "expected"] == pytest.approx(4 * found.loc[1, "expected"], rel=0.25)
    prompts = falling({1: 64}, tokens=20)
    prompts.cells[["supervised", "train_rows"]] = 321 * 10, 321 * 2
    half = departures(prompts).set_index("rank")
    assert half.loc[1, "expected"] == pytest.approx(2**0.5 * found.loc[1, "expected"], rel=0.1)
    once = falling({1: 400}, tokens=20)
    once.cells[["supervised", "train_rows"]] = 10.0, 2
    (row,) = departures(once).to_dict("records")
    assert np.isnan(row["step"]), "it never falls behind"
    assert np.isnan(row["expected"]), "ten tokens have too few bits"


def test_runs_that_learn_nothing_have_no_departure():
    worse = falling({1: 64}, tokens=20)
    worse.metrics["loss"] += 2.0
    assert departures(worse).empty
