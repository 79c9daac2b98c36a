"""The loss in chunks equals the loss, and never holds more logits than it says."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from study.models import FrozenBase
from study.training import fold
from study.training.fold import target_losses


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_losses_and_gradients_are_those_of_the_whole(
    tiny_base: FrozenBase, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    vocabulary, width = tiny_base.vocabulary, tiny_base.model.config.hidden_size  # type: ignore[union-attr]
    monkeypatch.setitem(fold.LOGITS, "cpu", chunk * vocabulary)
    torch.manual_seed(0)
    hidden, targets, weights = (
        torch.randn(23, width),
        torch.randint(vocabulary, (23,)),
        torch.rand(23),
    )
    most = 0

    def logits(hidden_nd: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(hidden_nd))
        return tiny_base.logits(hidden_nd)

    ours, whole = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    nll = target_losses(ours, targets, logits, vocabulary)
    reference = cross_entropy(tiny_base.logits(whole), targets, reduction="none")
    torch.testing.assert_close(nll, reference)
    (nll * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(ours.grad, whole.grad)
    assert most == min(chunk, 23)


def test_without_gradients_none_are_made(tiny_base: FrozenBase) -> None:
    hidden = torch.randn(5, tiny_base.model.config.hidden_size, requires_grad=True)  # type: ignore[union-attr]
    with torch.no_grad():
        nll = target_losses(hidden, torch.arange(5), tiny_base.logits, tiny_base.vocabulary)
    assert not nll.requires_grad
    assert hidden.grad is None


def test_no_target_is_an_empty_loss(tiny_base: FrozenBase) -> None:
    hidden = torch.randn(0, tiny_base.model.config.hidden_size, requires_grad=True)  # type: ignore[union-attr]
    target_losses(
        hidden, torch.empty(0, dtype=torch.long), tiny_base.logits, tiny_base.vocabulary
    ).sum().backward()
    assert hidden.grad is not None
