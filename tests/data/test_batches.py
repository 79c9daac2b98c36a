"""Token batches: the tokens of a row, its supervised tokens, and the order of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from study.data import Example, fingerprint
from study.data.batches import exact_match
from study.data.examples import split_places
from study.errors import StudyError
from study.models import tiny

from .conftest import corpus_of, table_of, written

EOS, BOS = 256, 258


def with_bos():
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


PLAIN, WITH_BOS = tiny.tokenizer(), with_bos()
"""One token per byte, so that texts determine rows."""


def build(folder, examples, length=32, tokenizer=PLAIN):
    file = written(folder / "rows.jsonl", [vars(example) for example in examples])
    return corpus_of(file, length, tokenizer, heldout=8)


def sides(examples):
    """The training and the held-out examples."""
    return [[examples[place] for place in places] for places in split_places(examples, 8)]


def rows_of(table):
    """(real tokens, supervised tokens, positions that predict them) of every row, after checks."""
    rows = []
    for batch in table.batches(3):
        assert batch.input_ids_BT.shape == batch.targets_BT.shape == batch.real_BT.shape
        assert batch.input_ids_BT.shape[1] == table.sequence_length
        assert batch.input_ids_BT.dtype == batch.targets_BT.dtype == torch.int64
        each = zip(batch.input_ids_BT, batch.targets_BT, batch.real_BT, strict=True)
        for ids, targets, real in each:
            count = int(real.sum())
            assert real[:count].all()  # padded on the right
            learned = (targets != -100).nonzero().flatten()
            assert torch.equal(targets[learned], ids[learned + 1])
            assert learned.max() < count - 1  # nothing is predicted from or on padding
            rows.append((ids[:count].tolist(), targets[learned].tolist(), learned.tolist()))
    return rows


words = st.text(st.characters(codec="utf-8"), max_size=12)
pairs = st.builds(Example, words, words.filter(str.strip))


@settings(max_examples=40)
@given(examples=st.lists(pairs, min_size=2, max_size=12, unique=True), bos=st.booleans())
def test_a_row_is_context_target_eos_and_the_loss_is_on_target_and_eos(
    examples, bos, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("batches")
    corpus = build(folder, examples, 100, WITH_BOS if bos else PLAIN)
    assert corpus.fingerprint == fingerprint(examples)
    for table, side in zip((corpus.train, corpus.heldout), sides(examples), strict=True):
        assert len(table) == len(side)
        for (ids, learned, positions), example in zip(rows_of(table), side, strict=True):
            if bos:
                assert ids.pop(0) == BOS
            elif not example.context:
                assert ids.pop(0) == EOS  # it predicts the first token of the target
            assert ids[-1] == learned[-1] == EOS
            assert PLAIN.decode(ids[:-1]) == example.context + example.target
            assert PLAIN.decode(learned[:-1]) == example.target
            assert positions == list(range(positions[0], positions[0] + len(learned)))


@pytest.mark.parametrize(
    ("example", "length", "tokenizer", "row"),
    [
        (Example("question", "yes"), 9, PLAIN, ("stion", "yes<eos>")),
        (Example("question", "yes"), 9, WITH_BOS, ("<bos>tion", "yes<eos>")),
        (Example("why?", "because so"), 6, PLAIN, ("?", "becau")),
        (Example("why?", "because so"), 6, WITH_BOS, ("<bos>", "becau")),
        (Example("why?", "yes!!"), 6, PLAIN, ("?", "yes!!")),
        (Example("why?", "yes!"), 6, PLAIN, ("?", "yes!<eos>")),
    ],
)
def test_a_context_loses_its_left_but_for_bos_and_a_target_its_right(
    tmp_path, example, length, tokenizer, row
):
    examples = [example, Example("other", "other")]
    corpus = build(tmp_path, examples, length, tokenizer)
    is_held = sides(examples)[1] == [example]
    [(ids, learned, _)] = rows_of(corpus.heldout if is_held else corpus.train)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "".join(row)
    assert tokenizer.decode(learned, skip_special_tokens=False) == row[1]


def test_what_can_not_be_tokens_is_refused(tmp_path):
    examples = [Example(str(n), "z") for n in range(9)]
    with pytest.raises(StudyError, match=r"data\.sequence_length=1"):
        build(tmp_path, examples, length=1)
    for tokenizer, highest in ((PLAIN, EOS + 1), (WITH_BOS, BOS)):  # the padding, the data
        corpus = build(tmp_path, examples, tokenizer=tokenizer)
        corpus.check_tokens(highest + 1, "m")
        says = rf"token {highest} of the tokenizer, but m has {highest} embedd"
        with pytest.raises(StudyError, match=says):
            corpus.check_tokens(highest, "m")


# The order of rows


def drawn(size, seed, step, batch_size):
    """The rows of a batch from a table of ``size`` rows."""
    return table_of([2] * size, room=4).batch(seed, step, batch_size).input_ids_BT[:, 1].tolist()


@given(size=st.integers(1, 40), batch_size=st.integers(1, 90), seed=st.integers(-(2**40), 2**40))
def test_every_epoch_is_a_permutation(size, batch_size, seed):
    steps = -(-3 * size // batch_size)
    order = [row for step in range(steps) for row in drawn(size, seed, step, batch_size)]
    assert len(order) == steps * batch_size
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ_and_a_seed_repeats():
    """The data order of a stored cell must not change with a release of numpy or of ours."""
    orders = [drawn(100, seed, step, 100) for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1]
    assert orders[0] not in orders[2:]
    assert drawn(10, seed=7, step=0, batch_size=10) == [8, 4, 3, 6, 2, 1, 0, 5, 9, 7]


# Questions: FinLoRA's rule for a correct answer, and their batches.


def test_the_share_of_right_answers():
    """The first label in an answer counts; of labels with the same start, the longer."""
    targets = ["positive", "Negative", " neutral", "positive"]
    answers = [
        " Positive.\nThe text is negative",
        "not negative but positive",
        "NEUTRAL?",
        "unclear",
    ]
    assert exact_match(answers, targets) == 0.75
    assert exact_match(["negative or positive", "negative"], ["positive", "negative"]) == 0.5
    assert exact_match(["0.125", "0.1 or 0.12", "5"], ["0.12", "0.1", "5"]) == 1


def test_questions_are_the_contexts_that_the_loss_sees(corpus):
    questions = corpus.questions
    trained = []
    for batch in corpus.heldout.batches(4):
        for row, targets in zip(batch.input_ids_BT, batch.targets_BT, strict=True):
            # The position that predicts the first token of the target.
            trained.append(row[: int((targets != -100).nonzero()[0]) + 1].tolist())
    asked = []
    for ids_BL, real_BL in questions.batches(4):
        for ids, real in zip(ids_BL, real_BL, strict=True):
            assert real.tolist() == sorted(real.tolist()), "padding is on the left"
            asked.append(ids[real].tolist())
    assert asked == sorted(trained, key=len), "by length"
    assert len(asked) == len(questions.targets) == len(corpus.heldout)
    for context, target in zip(asked, questions.targets, strict=True):
        assert target.strip().split()[0] in questions.tokenizer.decode(context)


def test_an_answer_ends_at_its_eos(corpus):
    questions = corpus.questions
    encode = questions.tokenizer.encode
    right = [encode(target) for target in questions.targets]
    assert questions.exact_match(right) == 1.0
    assert questions.exact_match([[questions.eos_token_id, *ids] for ids in right]) == 0.0
    junk = [questions.eos_token_id, *encode("junk")]
    assert questions.exact_match([[*ids, *junk] for ids in right]) == 1.0
