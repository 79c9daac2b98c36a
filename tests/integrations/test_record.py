"""``study.record`` around loops of torch: the numbers are those of our own training."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import study
from study.config import CellConfig
from study.data import Corpus

pytest.importorskip("peft")

Make = Callable[..., Any]
Batch = dict[str, Any]
Losses = list[float]


def micro_batches(config: CellConfig, corpus: Corpus) -> Iterator[Batch]:
    """Those of our training, in the form of transformers.

    The loss is a mean over the supervised tokens of the whole step, as in our training, once a loop
    has divided it by the number of micro-batches.
    """
    train = config.train
    for step in range(train.steps):
        first = step * train.accumulation
        parts = [
            corpus.train.batch(config.data.seed, first + n, train.batch_size)
            for n in range(train.accumulation)
        ]
        supervised = sum(int((part.targets_BT >= 0).sum()) for part in parts)
        for part in parts:
            ignored = torch.full((train.batch_size, 1), -100)
            yield {
                "input_ids": part.input_ids_BT,
                "labels": torch.cat([ignored, part.targets_BT[:, :-1]], dim=1),
                "attention_mask": part.real_BT.long(),
                "num_items_in_batch": supervised / train.accumulation,
            }


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def with_torch(
    model: Any,
    optimizer: Any,
    batches: Any,
    config: CellConfig,
    watch: Any,
    has_closure: bool,
) -> Losses:
    losses: Losses = []
    parts, left = config.train.accumulation, iter(batches)

    def accumulate() -> Tensor:
        optimizer.zero_grad()
        for batch in islice(left, parts):
            loss = model(**batch).loss
            (loss / parts).backward()
            losses.append(float(loss))
        if config.train.clip:
            nn.utils.clip_grad_norm_(trainable(model), config.train.clip)
        return loss

    with watch(model, optimizer):
        for _ in range(config.train.steps):
            if has_closure:
                optimizer.step(accumulate)
            else:
                accumulate()
                optimizer.step()
    return losses


CLIPPED = (
    *("optimizer=sgd", "optimizer.lr=0.05", "train.accumulation=2", "train.clip=0.5"),
    "adapter.scaling=rslora",
)
PLAIN = ("optimizer=adamw", "optimizer.lr=1e-3")


@pytest.mark.parametrize(
    ("has_closure", "overrides"), [(False, PLAIN), (False, CLIPPED), (True, CLIPPED)]
)
def test_numbers_are_those_of_our_training_and_losses_stay_the_same(
    has_closure: bool,
    overrides: tuple[str, ...],
    cell: Make,
    corpus: Corpus,
    peft_model: Make,
    ours: Make,
    assert_same: Make,
    tmp_path: Path,
) -> None:
    config = cell(*overrides, "adapter.rank=4", "train.eval_every=0", "probes.steps=[0,1,2]")

    def losses(watch: Any) -> tuple[Any, Losses]:
        torch.manual_seed(config.seed)
        model = peft_model(config)
        make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[config.optimizer.name]
        optimizer = make(trainable(model), lr=config.optimizer.lr, weight_decay=0.0)
        batches = micro_batches(config, corpus)
        return model, with_torch(model, optimizer, batches, config, watch, has_closure)

    def watch(model: Any, optimizer: Any) -> Any:
        return study.record(tmp_path / "run", model, optimizer, steps=[0, 1, 2])

    (plain_model, plain), (model, watched) = losses(lambda *_: nullcontext()), losses(watch)
    assert watched == plain
    for a, b in zip(plain_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert_same(study.load(tmp_path / "run"), config, ours(config))
