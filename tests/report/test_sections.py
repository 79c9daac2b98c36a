"""The report's sections: numbers and words on studies whose laws are known."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from study.analysis import load_tables
from study.analysis.answers import rate_table
from study.analysis.losses import INSIDE, compared_losses
from study.report import answer_table
from study.report.sections import loss_section, task_section
from study.store import StudyTables, load_measured

from .conftest import report_on

REFERENCE = Path(__file__).parents[2] / "results/reference"
EXPONENTS = "How does each quantity change with the rank, at which step, and what did theory say?"
P_STAR = "At which p does each quantity keep its size?"
LRS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def part(text, title):
    return text.split(f"<summary>{title}</summary>")[1].split("</details>")[0]


def section(folder, title):
    return part(report_on(folder), title)


def rows_of(text):
    """The entries of the tables of a section, without the first head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def flat(cell, step):
    """A factor near 1 that differs between seeds and ranks, with slopes of mean 0 over seeds."""
    return math.exp(0.002 * (cell["seed"] - 2) * math.log(cell["rank"]) * (1 + step))


def falling(cell, step):
    """Flat at step 0; later falling as r^-0.12: a factor of 0.61 from rank 4 to 256."""
    return flat(cell, step) * cell["rank"] ** (-0.12 if step else 0.0)


def test_a_study_with_two_batches_says_which_one_was_read(on_disk):
    """The two have different slopes, so the numbers show it. Outputs are read on held-out ones."""
    folder = on_disk(norm=flat, outputs={"train": flat, "heldout": falling})
    rows = {tuple(row[1:3]): row[4] for row in rows_of(section(folder, EXPONENTS))}
    assert rows["adapter output, rms", "held-out batch"].startswith("−0.12 [")
    assert ("adapter output, rms", "training batch") not in rows, "one verdict on a page"
    assert answer_table(load_tables(folder)).rows[0]["adapter output"] == "**×0.61**"


def test_one_seed_has_no_verdict_and_no_interval(on_disk):
    whole = report_on(on_disk(seeds=(0,), norm=falling, outputs={"train": flat}, lrs=LRS))
    for text in (*(part(whole, title) for title in (EXPONENTS, P_STAR)), whole.split("## Cav")[0]):
        assert "straightness of the line, one seed" in text
        assert "95 % interval" not in text
    assert {row[6] for row in rows_of(part(whole, EXPONENTS))} == {"one seed"}


def test_a_bent_line_has_its_slopes_at_both_ends(on_disk):
    def bent(cell, step):
        return flat(cell, step) * (cell["rank"] + 30) ** -0.5

    text = section(on_disk(norm=flat, outputs={"train": bent}), EXPONENTS)
    assert "| quantity | step |" in text, "a study with the training batch does not name it"
    ends = ((4, 32), (32, 256))
    low, high = (-0.5 * math.log((b + 30) / (a + 30)) / math.log(b / a) for a, b in ends)
    assert f"bent: −{-low:.2f} at the lowest ranks, −{-high:.2f} at the highest" in text


def test_exponents_have_factors_theory_and_words(on_disk):
    """The study has gamma sqrt(r) and gamma^2 r exactly, over ranks 4 to 256. It is sound: it has
    no caveats. The page says what was run."""
    page = report_on(on_disk())
    assert "None found in the tables." in page
    assert "model: known (as published; sha256 ffffffffffff)" in page
    for fact in ("a CPU (cpu)", "torch 2.13", "commit: 0123456789ab"):
        assert fact in page
    text = part(page, EXPONENTS)
    found = {tuple(row[:3]): row[3:] for row in rows_of(text)}
    norm, descent = "gradient norm over all adapters", "descent of an update"
    assert found["SGD, LoRA", norm, "0"][0] == "−0.50 [−0.50, −0.50]"
    assert found["SGD, LoRA", descent, "1"][1:4] == ["×0.016", "−1.00", "**shrinks**"]
    assert found["SGD, rsLoRA", norm, "0"][1:4] == ["×1.00", "0.00", "keeps its size"]
    assert "| exponent [95 % interval] |" in text
    assert "*shrinks*: by more than 1.5 times" in text
    assert "Verdicts are stricter than the intervals" in text


def test_a_rule_with_another_number_is_named_in_the_row(on_disk):
    def norm(cell, step):
        return cell["rank"] ** (0.1 if cell["scaling"] == "lora" else 0.0) * (1 + cell["seed"])

    rows = rows_of(section(on_disk(norm=norm), P_STAR))
    [row] = [row for row in rows if row[1].startswith("gradient norm") and row[2] == "0"]
    assert " but " in row[3]
    for text in ("LoRA", "rsLoRA", "0.50", "1.10"):
        assert text in " ".join(row[3:5])


def test_best_rates_have_an_exponent(on_disk, study_cli):
    """The best rate is 1e-3 at every rank and seed. The SGD of LoRA should need 1/M = r^+1."""
    folder = on_disk(lrs=LRS, seeds=(0, 1, 2), ranks=(4, 256))
    found = answer_table(load_tables(folder))
    lora, rslora = found.rows
    # Alignments were not recorded, so theory is the interval from r_align = 1 to r_align = D = 64.
    assert list(lora.values())[:-1] == [
        *("SGD, LoRA, γ = α/r", "0.001", "0.001", "×1.00", "0.000 [0.000, 0.000]")
    ]
    assert lora["theory"].startswith("1.0")
    assert rslora["theory"].startswith("0.0")
    assert "95 % intervals over 3 seeds" in found.notes
    assert "95 % intervals over 3 seeds" in study_cli("analyze", str(folder)).out


def test_each_alpha_has_its_own_best_rates():
    """The best rate is 1/alpha at alpha 4, and 1/(alpha r) at alpha 256."""
    alpha, rank, seed = np.array(list(itertools.product((4, 256), (4, 64), (0, 1))), float).T
    rule = {"optimizer": "adamw", "scaling": "lora", "exponent_p": 1.0, "crossover": np.nan}
    best = {"best_lr": np.where(alpha == 4, 1, 1 / rank) / alpha, "edge": INSIDE}
    grid = {"grid_step": 0.7, "grid_sd": 0.0, "moved": 0.0, "rho": 0.1, "log_output": 0.0}
    grid |= {"tried": 4, "curvature": 0.1, "seed_sd": 0.0, "seed_df": 1}
    grid["steps"] = 20
    cells = {**rule, "alpha": alpha, "setting": 0, "rank": rank, "seed": seed, **best, **grid}
    rates, none = pd.DataFrame(cells, index=range(len(rank))), pd.DataFrame()
    found = rate_table(StudyTables(none, none, none, rates=rates)).rows
    names = [f"AdamW, LoRA, γ = α/r, alpha={alpha}" for alpha in (4, 256)]
    shown = [(row["optimizer, rule"], row["exponent"][:6], row["rank 64"]) for row in found]
    assert shown == [(names[0], "0.000 ", "0.25"), (names[1], "-1.000", "6.1e-05")]


def test_each_setting_has_a_name_in_the_table_of_losses():
    study = load_measured(REFERENCE / "appendix")
    losses = compared_losses(study.cells, study.metrics)
    section = loss_section(replace(study, losses=losses))
    names = {row["rule"] for row in section.tables[0].rows}
    assert len(names) == 12
    assert {"LoRA, γ = α/r, warmup=5", "LoRA, γ = α/r, common setting"} <= names


def test_ranks_are_compared_with_full_fine_tuning():
    """alpha_small trained full fine-tuning at 256 steps only."""
    study = load_measured(REFERENCE / "alpha_small")
    section = task_section(study)
    cells = study.cells.assign(loss=study.cells["cell_id"].map(end_losses(study)))
    of_256 = cells[cells["steps"] == 256]
    full = of_256[of_256["scaling"] == "full"].groupby("lr")["loss"].mean().min()
    own = of_256[(of_256["rank"] == 256) & (of_256["alpha"] == 256) & (of_256["lr"] == 1e-3)]
    base = study.metrics.query("step == 0")["eval_loss"].mean()
    share = (base - own["loss"].mean()) / (base - full)
    [table] = section.tables
    rows = [row for row in table.rows if "steps=256" in row["rule"]]
    [row] = [row for row in rows if row["rank"] == "256" and "alpha=256" in row["rule"]]
    assert row["of full fine-tuning's gain"] == f"{share:.2f}"
    assert 0.5 < float(row["ρ"]) < 0.8
    [row] = [row for row in rows if row["rank"] == "full"]
    assert row["rule"].startswith("full fine-tuning, steps=256")
    assert (row["ρ"], row["of full fine-tuning's gain"]) == ("", "1.00")
    assert "A has moved by" in section.text[0]


def end_losses(study):
    known = study.metrics.dropna(subset=["eval_loss"]).sort_values("step")
    return known.groupby("cell_id", observed=True)["eval_loss"].last()
