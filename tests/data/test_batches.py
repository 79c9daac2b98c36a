"""Token batches: the tokens of a row, its supervised tokens, and the order of rows."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from study.config import DataConfig
from study.data import (
    Corpus,
    Example,
    TokenTable,
    build_corpus,
    fingerprint,
    split,
)
from study.errors import StudyError

EOS, BOS, PAD = 256, 257, 258


def byte_tokenizer(bos: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    """A real fast tokenizer with one token per byte, so that texts determine rows."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {
        "<eos>": EOS,
        "<bos>": BOS,
        "<pad>": PAD,
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
    names = (
        {"eos_token": "<eos>"}
        | ({"bos_token": "<bos>"} if bos else {})
        | ({"pad_token": "<pad>"} if pad else {})
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


PLAIN, WITH_BOS = byte_tokenizer(), byte_tokenizer(bos=True)


@pytest.fixture
def build(tmp_path):
    """Builds the corpus of some examples."""

    def corpus(examples, length=32, tokenizer=PLAIN, eos=EOS, heldout=8) -> Corpus:
        file = tmp_path / "rows.jsonl"
        file.write_text(
            "\n".join(json.dumps({"context": e.context, "target": e.target}) for e in examples)
        )
        config = DataConfig(
            name="file", path=str(file), sequence_length=length, heldout=heldout, seed=0
        )
        return build_corpus(config, tokenizer, eos)

    return corpus


def rows_of(table: TokenTable) -> list[tuple[list[int], list[int], list[int]]]:
    """(real tokens, supervised tokens, positions that predict them) of every row, after checks."""
    rows = []
    for batch in table.batches(3):
        assert batch.input_ids_BT.shape == batch.targets_BT.shape == batch.real_BT.shape
        assert batch.input_ids_BT.shape[1] == table.sequence_length
        assert batch.input_ids_BT.dtype == batch.targets_BT.dtype == torch.int64
        assert batch.real_BT.dtype == torch.bool
        for ids, targets, real in zip(
            batch.input_ids_BT, batch.targets_BT, batch.real_BT, strict=True
        ):
            count = int(real.sum())
            assert real[:count].all()  # padded on the right
            learned = (targets != -100).nonzero().flatten()
            assert torch.equal(targets[learned], ids[learned + 1])
            assert learned.max() < count - 1  # nothing is predicted from or on padding
            rows.append((ids[:count].tolist(), targets[learned].tolist(), learned.tolist()))
    return rows


def text(ids: list[int]) -> str:
    return PLAIN.decode(ids)


words = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    examples=st.lists(
        st.builds(Example, words, words.filter(str.strip)), min_size=2, max_size=12, unique=True
    ),
    bos=st.booleans(),
)
def test_a_row_is_context_target_eos_and_the_loss_is_on_target_and_eos(
    examples, bos, tmp_path_factory
):
    file = tmp_path_factory.mktemp("batches") / "rows.jsonl"
    file.write_text(
        "\n".join(json.dumps({"context": e.context, "target": e.target}) for e in examples)
    )
    config = DataConfig(name="file", path=str(file), sequence_length=100, heldout=8, seed=0)
    corpus = build_corpus(config, WITH_BOS if bos else PLAIN, EOS)
    assert corpus.fingerprint == fingerprint(examples)
    train, held = split(examples, 8)
    for table, side in ((corpus.train, train), (corpus.heldout, held)):
        assert len(table) == len(side)
        for (ids, learned, positions), example in zip(rows_of(table), side, strict=True):
            if bos:
                assert ids.pop(0) == BOS
            elif not example.context:
                assert ids.pop(0) == EOS  # it predicts the first token of the target
            assert ids[-1] == learned[-1] == EOS
            assert text(ids[:-1]) == example.context + example.target
            assert text(learned[:-1]) == example.target
            assert positions == list(range(positions[0], positions[0] + len(learned)))


FILLER = [Example("other", "other")]


def row(build, example, **kwargs):
    """The row of ``example``, on either side of the split."""
    corpus = build([example, *FILLER], **kwargs)
    held = split([example, *FILLER], 8)[1] == [example]
    return rows_of(corpus.heldout if held else corpus.train)[0]


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS])
def test_a_long_context_loses_its_left_but_for_bos(build, tokenizer):
    # 8 + 3 + eos would be 12.
    ids, learned_ids, positions = row(
        build, Example("question", "yes"), length=9, tokenizer=tokenizer
    )
    assert len(ids) == 9
    assert text(learned_ids[:-1]) == "yes"
    assert learned_ids[-1] == EOS
    if tokenizer is WITH_BOS:
        assert ids[0] == BOS
        assert text(ids[1:-4]) == "tion"
    else:
        assert text(ids[:-4]) == "stion"
    assert positions == [4, 5, 6, 7]


@pytest.mark.parametrize(("tokenizer", "first"), [(PLAIN, "?"), (WITH_BOS, None)])
def test_a_long_target_loses_its_right_and_its_eos(build, tokenizer, first):
    ids, learned, positions = row(
        build, Example("why?", "because so"), length=6, tokenizer=tokenizer
    )
    assert text(learned) == "becau"
    assert positions == [0, 1, 2, 3, 4]
    assert (ids[0] == BOS) if first is None else (text(ids[:1]) == first)


def test_a_target_that_leaves_no_room_for_eos_ends_without_it(build):
    assert text(row(build, Example("why?", "yes!!"), length=6)[1]) == "yes!!"
    assert row(build, Example("why?", "yes!"), length=6)[1][-1] == EOS


def test_without_an_eos_nothing_is_appended(build):
    ids, learned, _ = row(build, Example("q", "answer"), eos=None)
    assert text(ids) == "qanswer"
    assert text(learned) == "answer"
    _, learned, _ = row(build, Example("", "answer"), eos=None)
    assert text(learned) == "nswer"  # no token precedes the first


@pytest.mark.parametrize(
    ("tokenizer", "eos", "padding"), [(PLAIN, EOS, PAD), (byte_tokenizer(pad=False), EOS, EOS)]
)
def test_padding_is_pad_or_eos(build, tokenizer, eos, padding):
    batch = next(build([Example("q", "a"), *FILLER], tokenizer=tokenizer, eos=eos).train.batches(1))
    assert set(batch.input_ids_BT[~batch.real_BT].tolist()) == {padding}
    assert (batch.targets_BT[~batch.real_BT] == -100).all()


def test_more_examples_than_a_chunk_keep_their_order(build):
    examples = [Example(f"question {i}", f"{i}") for i in range(2345)]
    corpus = build(examples)
    train, _ = split(examples, 8)
    for index in (0, 999, 1000, 1001, len(train) - 1):
        ids = corpus.train.tokens[
            corpus.train.starts[index] : corpus.train.starts[index + 1]
        ].tolist()
        assert text(ids[:-1]) == train[index].context + train[index].target


def test_a_sequence_of_one_token_is_refused(build):
    with pytest.raises(StudyError, match=r"data\.sequence_length=1"):
        build([Example("q", "a"), *FILLER], length=1)


# The order of rows


def numbered(size: int) -> TokenTable:
    """A table whose row ``i`` is the two tokens ``0, i``."""
    numbers = np.stack(
        [np.zeros(size, dtype=np.int32), np.arange(size, dtype=np.int32)], axis=1
    ).flatten()
    return TokenTable(
        numbers,
        np.tile([False, True], size),
        2 * np.arange(size + 1),
        sequence_length=4,
        padding_id=0,
    )


def drawn(table: TokenTable, seed: int, step: int, batch_size: int) -> list[int]:
    return table.batch(seed, step, batch_size).input_ids_BT[:, 1].tolist()


@given(size=st.integers(1, 40), batch_size=st.integers(1, 90), seed=st.integers(-(2**40), 2**40))
def test_every_epoch_is_a_permutation(size, batch_size, seed):
    table = numbered(size)
    steps = -(-3 * size // batch_size)
    order = [row for step in range(steps) for row in drawn(table, seed, step, batch_size)]
    assert len(order) == steps * batch_size
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ_and_a_seed_repeats():
    table = numbered(100)
    assert drawn(table, 0, 0, 100) == drawn(numbered(100), 0, 0, 100)
    assert drawn(table, 0, 0, 100) != drawn(table, 0, 1, 100)
    assert drawn(table, 0, 0, 100) != drawn(table, 1, 0, 100)


def test_the_order_is_pinned():
    """The data order of a stored cell must not change with a release of numpy or of ours."""
    assert drawn(numbered(10), seed=7, step=0, batch_size=10) == [8, 4, 3, 6, 2, 1, 0, 5, 9, 7]


def test_batches_go_through_the_table_once_in_order():
    sizes, rows = [], []
    for batch in numbered(10).batches(4):
        sizes.append(len(batch.input_ids_BT))
        rows += batch.input_ids_BT[:, 1].tolist()
    assert sizes == [4, 4, 2]
    assert rows == list(range(10))


def test_a_token_that_the_model_lacks_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"context": f"{n}", "target": "z"}) + "\n" for n in range(9))
    )
    config = DataConfig(name="file", path=str(file), sequence_length=16, heldout=2, seed=0)
    corpus = build_corpus(config, PLAIN, EOS)
    highest = max(int(corpus.train.tokens.max()), int(corpus.heldout.tokens.max()))
    corpus.check_tokens(highest + 1, "m")
    with pytest.raises(StudyError, match=rf"is token {highest} of .* but m has {highest} embedd"):
        corpus.check_tokens(highest, "m")
