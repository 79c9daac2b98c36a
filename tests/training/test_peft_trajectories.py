"""Our trajectories agree with PEFT's: same init, data and optimizer, five steps, both rules."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from study.adapters import adapted
from study.adapters.bank import AdapterSpec
from study.config import CellConfig, ModelConfig
from study.data import Corpus, TokenBatch, build_corpus
from study.models import FrozenBase, load_base, load_tokenizer, smollm2
from study.store.cache import cache_folder
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
    with (
        adapted(
            base.model, base.card.linears, [AdapterSpec(adapter.rank, 1.0, config.seed)]
        ) as banks,
        torch.no_grad(),
    ):
        for bank in banks:
            layer = model.get_submodule(f"base_model.model.{bank.layer}")
            layer.lora_A["default"].weight.copy_(bank.pairs[0].A_RD)
    weights = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer.name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            weights, lr=config.optimizer.lr, weight_decay=0.0, foreach=True
        )
    else:
        optimizer = torch.optim.SGD(weights, lr=config.optimizer.lr)
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
OPTIMIZERS = [("adamw", "1e-3", 1e-4), ("sgd", "0.05", 1e-5)]


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize(("optimizer", "lr", "tolerance"), OPTIMIZERS)
def test_tiny(
    tiny_base: FrozenBase,
    corpus: Corpus,
    cell: Callable[..., CellConfig],
    scaling: str,
    optimizer: str,
    lr: str,
    tolerance: float,
) -> None:
    config = cell(
        f"optimizer={optimizer}",
        f"optimizer.lr={lr}",
        f"adapter.scaling={scaling}",
        "adapter.rank=16",
    )
    assert_same(our_run(tiny_base, config, corpus), peft_run(tiny_base, config, corpus), tolerance)


@pytest.fixture(scope="module")
def smollm2_base() -> FrozenBase:
    if not smollm2.is_whole(cache_folder() / smollm2._NAME):
        pytest.skip("SmolLM2 is not in the user cache: run `study fetch smollm2`")
    return load_base(ModelConfig("smollm2"), torch.device("cpu"), "float32")


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("scaling", "optimizer", "lr", "tolerance"),
    [("lora", "adamw", "1e-4", 1e-4), ("rslora", "sgd", "0.05", 1e-5)],
)
def test_smollm2(
    smollm2_base: FrozenBase,
    cell: Callable[..., CellConfig],
    scaling: str,
    optimizer: str,
    lr: str,
    tolerance: float,
) -> None:
    """Each rule and each optimizer once; tiny has all pairs."""
    overrides = [
        "model=smollm2",
        f"optimizer={optimizer}",
        f"optimizer.lr={lr}",
        f"adapter.scaling={scaling}",
    ]
    config = cell(*overrides, "adapter.rank=16", "train.batch_size=2")
    tokenizer = load_tokenizer(config.model)
    corpus = build_corpus(config.data, tokenizer, tokenizer.eos_token_id)
    ours = our_run(smollm2_base, config, corpus)
    assert_same(ours, peft_run(smollm2_base, config, corpus), tolerance)
