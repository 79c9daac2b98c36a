"""Our trajectories agree with PEFT's: same init, data and optimizer, five steps, both rules."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from study.adapters import adapted
from study.adapters.bank import AdapterSpec
from study.config import CellConfig
from study.data import Corpus, TokenBatch, build_corpus
from study.models import FrozenBase, load_tokenizer
from study.training.loop import Fold

STEPS = 5


def peft_run(
    base: FrozenBase, config: CellConfig, corpus: Corpus
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loop of a PEFT user: all logits, a mask, shifted labels, torch's optimizer."""
    from peft import LoraConfig, get_peft_model

    adapter = config.adapter
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.scaling == "rslora",
        target_modules=adapter.targets,
        lora_dropout=0.0,
    )
    model = get_peft_model(copy.deepcopy(base.model), lora)
    spec = AdapterSpec(adapter.rank, 1.0, config.seed)
    with adapted(base.model, base.card.linears, [spec]) as banks, torch.no_grad():
        for bank in banks:
            layer = model.get_submodule(f"base_model.model.{bank.layer}")
            layer.lora_A["default"].weight.copy_(bank.pairs[0].A_RD)
    weights = [p for p in model.parameters() if p.requires_grad]
    of_torch = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.optimizer.name]
    optimizer = of_torch(weights, lr=config.optimizer.lr, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        batch: TokenBatch = corpus.train.batch(config.data.seed, step, config.train.batch_size)
        logits = model(input_ids=batch.input_ids_BT, attention_mask=batch.real_BT.long()).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {
        name.removeprefix("base_model.model."): torch.cat(
            [m.lora_A["default"].weight.flatten(), m.lora_B["default"].weight.flatten()]
        )
        for name, m in model.named_modules()
        if hasattr(m, "lora_A")
    }


def our_run(
    base: FrozenBase, config: CellConfig, corpus: Corpus
) -> tuple[list[float], dict[str, torch.Tensor]]:
    adapter = config.adapter
    specs = [AdapterSpec(adapter.rank, adapter.gamma, config.seed)]
    with adapted(base.model, base.card.linears, specs) as banks:
        fold = Fold(base, corpus, [config], banks)
        losses = []
        for step in range(STEPS):
            losses += fold.backward(step, None)
            fold.grad_norms()
            fold.update()
        return losses, {
            b.layer: torch.cat([b.pairs[0].A_RD.flatten(), b.pairs[0].B_OR.flatten()]).detach()
            for b in banks
        }


def assert_same(ours: tuple, theirs: tuple, weight_tolerance: float) -> None:
    losses, weights = ours
    assert losses == pytest.approx(theirs[0], rel=1e-5)
    assert losses[0] != losses[-1]
    assert weights.keys() == theirs[1].keys()
    worst = max(((weights[n] - w).norm() / w.norm()).item() for n, w in theirs[1].items())
    assert worst <= weight_tolerance, f"relative weight difference {worst:.1e}"


# AdamW turns the rounding of tiny gradients into fractions of lr, so its weights may differ more.
TOLERANCES = {"adamw": 1e-4, "sgd": 1e-5}


def compare(base: FrozenBase, config: CellConfig) -> None:
    tokenizer = load_tokenizer(config.model)
    corpus = build_corpus(config.data, tokenizer, tokenizer.eos_token_id)
    ours, theirs = our_run(base, config, corpus), peft_run(base, config, corpus)
    assert_same(ours, theirs, TOLERANCES[config.optimizer.name])


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("optimizer", ["adamw,1e-3", "sgd,0.05"])
def test_tiny(
    tiny_base: FrozenBase, cell: Callable[..., CellConfig], scaling: str, optimizer: str
) -> None:
    name, lr = optimizer.split(",")
    common = (f"adapter.scaling={scaling}", "adapter.rank=16")
    compare(tiny_base, cell(f"optimizer={name}", f"optimizer.lr={lr}", *common))
