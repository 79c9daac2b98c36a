"""Held-out answers agree with another implementation and improve with training."""

import copy
import json
import re

import torch
from transformers import GenerationConfig

from study.adapters import adapted, resolve_targets
from study.data.batches import build_corpus
from study.models import load_tokenizer
from study.training.fold import adapter_spec
from study.training.loop import Fold
from study.training.measuring import exact_matches

WORDS = {"a": "north", "b": "south", "c": "east", "d": "west"}


def test_answers_are_those_of_a_plain_generate_on_merged_weights(tiny_base, cell, tmp_path):
    """Two cells at once, batched, padded and cached, against transformers' generate.

    The latter has gamma B A merged into the weights and takes one question at a time, without
    padding and without a cache. The task has four labels, and the last letter of a question names
    the right one.
    """
    path = tmp_path / "task.jsonl"
    rows = [
        {"context": f"{'x' * (n % 7)}{n} {letter}:", "target": word}
        for n in range(40)
        for letter, word in WORDS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [f"data.path={path}", "data.sequence_length=24", "data.heldout=16", "train.steps=60"]
    line += ["optimizer.lr=1e-2", "train.answer_tokens=6", "probes.steps=null"]
    line += ["adapter.scaling=rslora", "train.batch_size=7"]
    configs = [cell(*line, f"adapter.rank={rank}") for rank in (2, 8)]
    tokenizer = load_tokenizer(configs[0].model)
    task = build_corpus(configs[0].data, tokenizer, tokenizer.eos_token_id)
    tokens = configs[0].train.answer_tokens
    layers = resolve_targets(tiny_base.card.linears, "all-linear")
    with adapted(tiny_base.model, layers, [adapter_spec(c) for c in configs]) as banks:
        fold = Fold(tiny_base, task, configs, banks)
        for step in range(28):  # the lower rank then has some answers right, the higher one all
            fold.backward(step)
            fold.grad_norms()
            fold.update()
        ours, expected = exact_matches(fold, tokens), []
    for k in range(len(configs)):
        merged = copy.deepcopy(tiny_base.model)
        for bank in banks:
            A_RD, B_OR, gamma = bank.pairs[k]
            merged.get_submodule(bank.layer).weight.data += gamma * B_OR.detach() @ A_RD.detach()
        expected.append(_scored(merged, task, tokens))
    assert ours == expected
    assert 0 < ours[0] < ours[1]
    assert task.questions.exact_match([[]] * len(task.questions.targets)) == 0


def _scored(model, corpus, tokens):
    """FinLoRA's rule in other words: the leftmost match of an alternation of all labels."""
    questions = corpus.questions
    labels = sorted(set(questions.targets), key=len, reverse=True)
    label = re.compile("|".join(map(re.escape, labels)), re.IGNORECASE)
    plain = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=questions.eos_token_id,
    )
    right = 0
    for context, target in zip(questions.contexts, questions.targets, strict=True):
        ids = model.generate(input_ids=torch.tensor([context]), generation_config=plain)
        answer = ids[0, len(context) :]
        found = label.search(questions.tokenizer.decode(answer, skip_special_tokens=True))
        right += found is not None and found[0].lower() == target
    return right / len(questions.targets)
