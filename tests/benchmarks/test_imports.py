"""``python -m benchmarks.imports`` on samples of public configurations."""

from pathlib import Path

import pytest

from benchmarks.imports import summary

SAMPLES = Path(__file__).parents[3] / "shared/data/configs"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples are not here")
def test_the_counts_of_public_configurations() -> None:
    """At most one sample of each tool differs from its file; training on preferences is refused."""
    axolotl, factory = (summary(SAMPLES / name) for name in ("axolotl", "llama-factory"))
    assert axolotl[0] == "axolotl: 8 files, 7 import, 6 without a difference"
    assert factory[0] == "llama-factory: 3 files, 2 import, 2 without a difference"
    assert any(line.startswith("     1 differs: quantize_moe_experts (") for line in axolotl)
    assert any("1 refused: rl trains on preferences" in line for line in axolotl)


def test_entries_of_one_file_are_counted(tmp_path: Path) -> None:
    entry = '{"base_model": "m", "dataset_path": "x.jsonl", "lora_r": 8, "peft_use_dora": true}'
    (tmp_path / "finetune_configs.json").write_text(f'{{"a": {entry}, "b": {entry}}}')
    head, *lines = summary(tmp_path)
    assert head.endswith("2 files, 2 import, 0 without a difference")
    assert "     2 differs: peft_use_dora (plain LoRA is trained)" in lines
