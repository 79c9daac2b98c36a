"""Numbers of the pages on the law."""

import pytest

from docs import law_page


@pytest.mark.parametrize(("rank", "published"), [("32", 3.0), ("256", 6.9)])
def test_from_lora_to_rslora_the_rate_falls_less_than_by_the_square_root_of_the_rank(
    rank, published
):
    """Two published pairs at rank 32 say about 3; paper_learning_rate says 6.9 at rank 256."""
    factor = float(law_page.rule_change(rank).split(" ")[0])
    assert factor == pytest.approx(published, rel=0.2)
    assert factor < 0.6 * int(rank) ** 0.5
