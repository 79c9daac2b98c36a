"""Held-out answers agree with another implementation and improve with training."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from study.adapters import adapted, resolve_targets
from study.config import CellConfig
from study.data import Corpus, build_corpus
from study.errors import StudyError
from study.models import FrozenBase, load_tokenizer
from study.sweeps.cells import plan
from study.training.loop import Fold, train
from study.training.measuring import exact_matches
from study.training.run import Run, adapter_spec

Build = Callable[..., CellConfig]
WORDS = {"a": "north", "b": "south", "c": "east", "d": "west"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labels; the last letter of a question names the right one."""
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    rows = [
        {"context": f"{'x' * (n % 7)}{n} {letter}:", "target": word}
        for n in range(40)
        for letter, word in WORDS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def learning(cell: Build, task: Path) -> list[str]:
    line = [
        f"data.path={task}",
        "data.sequence_length=24",
        "data.heldout=16",
        "train.batch_size=16",
        "train.steps=60",
    ]
    return [
        *line,
        "optimizer.lr=1e-2",
        "train.answer_tokens=6",
        "probes.steps=null",
        "adapter.scaling=rslora",
    ]


@pytest.fixture(scope="module")
def learned(
    tiny_base: FrozenBase, cell: Build, learning: list[str]
) -> tuple[Corpus, list[CellConfig], pd.DataFrame]:
    """Two cells of different ranks trained on the task in one fold, and their rows of metrics."""
    configs = [cell(*learning, f"adapter.rank={rank}") for rank in (1, 8)]
    tokenizer = load_tokenizer(configs[0].model)
    corpus = build_corpus(configs[0].data, tokenizer, tokenizer.eos_token_id)
    steps = list(
        train(tiny_base, corpus, [Run.of(config, corpus, tiny_base.device) for config in configs])
    )
    rows = [
        {"rank": c.adapter.rank} | step[k].metrics for step in steps for k, c in enumerate(configs)
    ]
    return corpus, configs, pd.DataFrame(rows)


def test_a_task_that_can_be_learned_is_learned(
    learned: tuple[Corpus, list[CellConfig], pd.DataFrame],
) -> None:
    _, _, metrics = learned
    scores = metrics.dropna(subset=["exact_match"]).pivot(
        index="step", columns="rank", values="exact_match"
    )
    assert list(scores.index) == [0, 60], (
        "scored where the held-out loss is taken, and nowhere else"
    )
    assert (scores.loc[0] < 0.5).all()
    assert scores.loc[60, 8] > 0.9


def test_answers_are_those_of_a_plain_generate_on_merged_weights(
    tiny_base: FrozenBase, cell: Build, learning: list[str]
) -> None:
    """Two cells at once, batched, padded and cached, against transformers' generate.

    The latter has gamma B A merged into the weights and takes one question at a time, without
    padding and without a cache.
    """
    configs = [cell(*learning, f"adapter.rank={rank}", "train.batch_size=7") for rank in (2, 8)]
    tokenizer = load_tokenizer(configs[0].model)
    corpus = build_corpus(configs[0].data, tokenizer, tokenizer.eos_token_id)
    questions, tokens = corpus.questions, configs[0].train.answer_tokens
    assert tokens is not None
    layers = resolve_targets(tiny_base.card.linears, "all-linear")
    with adapted(tiny_base.model, layers, [adapter_spec(c) for c in configs]) as banks:
        fold = Fold(tiny_base, corpus, configs, banks)
        for step in range(28):  # the lower rank then has some answers right, the higher one all
            fold.backward(step)
            fold.grad_norms()
            fold.update()
        ours = exact_matches(fold, tokens)
        pairs = [[bank.pairs[k] for bank in banks] for k in range(2)]
        deltas = [
            {bank.layer: p.gamma * p.B_OR @ p.A_RD for bank, p in zip(banks, of, strict=True)}
            for of in pairs
        ]
    expected = []
    for delta_of in deltas:
        merged = copy.deepcopy(tiny_base.model)
        with torch.no_grad():
            for layer, delta in delta_of.items():
                merged.get_submodule(layer).weight += delta
        expected.append(_scored(merged, corpus, tokens))
    assert ours == expected
    assert 0 < ours[0] < ours[1]
    assert questions.exact_match([[]] * len(questions.targets)) == 0


def _scored(model: Any, corpus: Corpus, tokens: int) -> float:
    """FinLoRA's rule in other words: the leftmost match of an alternation of all labels."""
    questions = corpus.questions
    label = re.compile(
        "|".join(map(re.escape, sorted(set(questions.targets), key=len, reverse=True))),
        re.IGNORECASE,
    )
    plain = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=questions.eos_token_id,
    )
    right = 0
    for context, target in zip(questions.contexts, questions.targets, strict=True):
        ids: Tensor = model.generate(input_ids=torch.tensor([context]), generation_config=plain)
        found = label.search(
            questions.tokenizer.decode(ids[0, len(context) :], skip_special_tokens=True)
        )
        right += found is not None and found[0].lower() == target
    return right / len(questions.targets)


def test_asking_changes_no_other_number(tiny_base: FrozenBase, cell: Build, corpus: Corpus) -> None:
    line = ["adapter.dropout=0.1", "train.eval_every=1"]
    plain, asked = (
        pd.DataFrame(
            [
                step[0].metrics
                for step in train(
                    tiny_base, corpus, [Run.of(cell(*line, *more), corpus, tiny_base.device)]
                )
                if step[0]
            ]
        )
        for more in ([], ["train.answer_tokens=4"])
    )
    assert asked["exact_match"].between(0, 1).all()
    pd.testing.assert_frame_equal(
        plain.drop(columns="seconds"),
        asked.drop(columns=["seconds", "exact_match"]),
        check_exact=True,
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["train.answer_tokens=0"], "train.answer_tokens=0 is out of range"),
        (["train.answer_tokens=4", "train.eval_every=0"], "train.eval_every=0 never evaluates"),
        (["train.answer_tokens=100", "data.sequence_length=500"], "their sum may be at most 512"),
    ],
)
def test_mistakes(cell: Build, line: list[str], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        plan([cell(*line)])
