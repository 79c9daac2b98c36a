"""Alpha, LoRA+'s ratio and the size of A's init reach one run in three ways (docs/alpha.md)."""

import pytest

from tests.trained import series, trained

PLAIN = ("optimizer=adamw", "optimizer.eps=1e-25", "train.steps=20", "train.schedule=cosine")
"""No weight decay and no clipping. eps is so small that it does not act."""


@pytest.mark.contract
@pytest.mark.parametrize("rank", [4, 64])
def test_alpha_is_the_ratio_of_lora_plus(tiny_base, corpus, cell, rank):
    """16 times alpha is a ratio of 16, at one rate of A."""
    ways = (
        ("adapter.alpha=256", "optimizer.lr=1e-3"),
        ("adapter.alpha=16", "optimizer.lr=1e-3", "optimizer.loraplus_lr_ratio=16"),
        ("adapter.alpha=16", "optimizer.lr=1e-3"),
    )
    runs = [
        series(trained(tiny_base, corpus, cell(f"adapter.rank={rank}", *PLAIN, *way))[0], "loss")
        for way in ways
    ]
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    assert runs[2][-1] != pytest.approx(runs[0][-1], rel=1e-3)


@pytest.mark.contract
@pytest.mark.parametrize("rank", [4, 64])
def test_alpha_is_the_square_of_the_size_of_the_init(tiny_base, corpus, cell, rank):
    """An A smaller by ``s`` at (alpha, lr) is A itself at (alpha s^2, lr / s). The init ``scaled``
    has s = rank^-1/2."""
    s = rank**-0.5
    ways = (
        ("adapter.init=scaled", "adapter.alpha=256", "optimizer.lr=1e-3"),
        ("adapter.init=kaiming", f"adapter.alpha={256 * s**2}", f"optimizer.lr={1e-3 / s}"),
        ("adapter.init=kaiming", "adapter.alpha=256", "optimizer.lr=1e-3"),
    )
    runs = [
        series(trained(tiny_base, corpus, cell(f"adapter.rank={rank}", *PLAIN, *way))[0], "loss")
        for way in ways
    ]
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    assert runs[2][-1] != pytest.approx(runs[0][-1], rel=1e-3)
