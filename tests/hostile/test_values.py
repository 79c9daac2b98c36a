"""Values of overrides that are wrong or absurd: one line, in a second, and nothing written."""

import pytest

VALUES = [
    ("adapter.rank=0", "adapter.rank=0: rank must be a positive integer or inf"),
]


@pytest.mark.parametrize(("override", "says"), VALUES, ids=[row[0][:40] for row in VALUES])
def test_a_wrong_value_gets_one_line(refused, override: str, says: str) -> None:
    refused(f"train {override}", says)


def test_the_small_cell_trains(run) -> None:
    """Otherwise a case could be refused for another reason than its own."""
    ended = run("train", seconds=20)
    assert ended.code == 0, ended.err
    assert "here/results/default/cells" in ended.wrote
