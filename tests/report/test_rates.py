"""The report and ``study analyze`` on the best learning rates of a study with known basins."""

from collections.abc import Callable
from pathlib import Path

from study import load
from study.report import as_markdown
from study.report.sections import rate_section

OnDisk = Callable[..., Path]
LRS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def test_the_section_has_the_exponents_and_a_word(
    on_disk: OnDisk, study_cli: Callable[..., object]
) -> None:
    """The best rate is 1e-3 at every rank and seed. The SGD of LoRA should need 1/M = r^+1."""
    folder = on_disk(lrs=LRS)
    printed = study_cli("analyze", str(folder))
    text = as_markdown(rate_section(load(folder)))
    [lora] = [line for line in text.splitlines() if "LoRA, γ = α/r |" in line and "[" in line]
    [rslora] = [line for line in text.splitlines() if "rsLoRA" in line and "[" in line]
    # Alignments were not recorded, so theory is the interval from r_align = 1 to r_align = D = 64.
    assert lora.startswith("| SGD | LoRA, γ = α/r | 0.00 [0.00, 0.00] | 1.0")
    assert "| differs | 3 | 0 |" in lora
    assert "| 0.00 [0.00, 0.00] | 0.0" in rslora
    assert "| agrees |" in rslora or "| unclear |" in rslora
    for word in ("differs: ", "95 % intervals over 5 seeds"):
        assert word in text
        assert word in printed.out
    assert "best learning rate with rank" in printed.out
    assert "SGD, LoRA" in printed.out
    assert "4-256" in printed.out


def test_one_seed_has_no_word_and_no_95_percent(on_disk: OnDisk, study_cli) -> None:
    folder = on_disk(lrs=LRS, seeds=(0,))
    study_cli("analyze", str(folder))
    text = as_markdown(rate_section(load(folder)))
    assert "| one seed |" in text
    assert "95 %" not in text
    assert "straightness" in text


def test_three_rates_do_not_place_the_minimum(on_disk: OnDisk, study_cli) -> None:
    """Without a fourth rate the skew is unknown: the error of the grid is up to half a step."""
    folder = on_disk(lrs=LRS[1:4])
    study_cli("analyze", str(folder))
    [lora] = [
        line
        for line in as_markdown(rate_section(load(folder))).splitlines()
        if "LoRA, γ = α/r |" in line and "[" in line
    ]
    # ln(10) / sqrt(12), over ranks 4, 32 and 256: 1.96 * 0.665 * sqrt(2) / ln(64) = 0.44.
    assert "0.00 [-0.44, 0.44]" in lora
