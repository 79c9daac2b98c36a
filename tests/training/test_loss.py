"""The loss in chunks equals the loss, and never holds more logits than it says."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from study.models import FrozenBase
from study.training import fold
from study.training.fold import target_losses


@pytest.mark.parametrize(("chunk", "targets"), [(1, 23), (7, 23), (100, 23), (4, 0)])
def test_losses_and_gradients_are_those_of_the_whole(
    tiny_base: FrozenBase, monkeypatch: pytest.MonkeyPatch, chunk: int, targets: int
) -> None:
    vocabulary, sizes = tiny_base.vocabulary, []
    monkeypatch.setitem(fold.LOGITS, "cpu", chunk * vocabulary)
    torch.manual_seed(0)
    hidden_Nd, weights_N = torch.randn(targets, 64), torch.rand(targets)
    targets_N = torch.randint(vocabulary, (targets,))

    def logits(hidden_nd: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden_nd))
        return tiny_base.logits(hidden_nd)

    ours, whole = hidden_Nd.clone().requires_grad_(), hidden_Nd.clone().requires_grad_()
    nll_N = target_losses(ours, targets_N, logits, vocabulary)
    reference_N = cross_entropy(tiny_base.logits(whole), targets_N, reduction="none")
    torch.testing.assert_close(nll_N, reference_N)
    (nll_N * weights_N).sum().backward()
    (reference_N * weights_N).sum().backward()
    torch.testing.assert_close(ours.grad, whole.grad)
    assert max(sizes) == min(chunk, targets)
    with torch.no_grad():
        assert not target_losses(ours, targets_N, logits, vocabulary).requires_grad
