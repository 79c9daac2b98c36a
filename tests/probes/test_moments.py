"""Sums over the elements of a tensor."""

import pytest
import torch

from study.probes.statistics import scaled_sums, unscaled


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12])
def test_moments_at_any_scale(scale: float) -> None:
    x = torch.randn(1000) * scale
    expected = x.double().abs()
    sums = unscaled(scaled_sums(x.split(300)).numpy())
    assert len(sums) == 4
    for found, wanted in zip(
        [*sums[:, :3].sum(0), sums[:, 3].max()],
        (expected.sum(), expected.pow(2).sum(), expected.pow(4).sum(), expected.max()),
        strict=True,
    ):
        assert found == pytest.approx(float(wanted), rel=1e-6)


def test_zero_tensors_have_zero_moments_and_are_finite() -> None:
    assert unscaled(scaled_sums([torch.zeros(5)]).numpy()).tolist() == [[0, 0, 0, 0]]
