"""FinLoRA's rule for a correct answer, and questions as batches."""

import pytest

from study.data import Corpus
from study.data.batches import exact_match

MOODS = ["positive", "negative", "neutral"]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (" Positive.\nThe text is negative", "positive"),
        ("not negative but positive", "negative"),
        ("The answer is NEUTRAL", "neutral"),
        ("no idea", None),
    ],
)
def test_the_first_label_in_an_answer(answer: str, label: str | None) -> None:
    right = [mood for mood in MOODS if exact_match([answer, *MOODS], [mood, *MOODS]) == 1]
    assert right == ([label] if label else [])


def test_of_labels_with_the_same_start_the_longer_counts() -> None:
    assert exact_match(["0.125", "0.1 or 0.12", "5"], ["0.12", "0.1", "5"]) == 1


def test_the_share_of_right_answers() -> None:
    targets = ["positive", "Negative", " neutral", "positive"]
    answers = ["positive", "it is negative, not positive", "positive", "unclear"]
    assert exact_match(answers, targets) == 0.5
    # Another label comes first. FinLoRA's older rule (target in answer) gave 1.
    assert exact_match(["negative or positive", "negative"], ["positive", "negative"]) == 0.5


def test_questions_are_the_contexts_that_the_loss_sees(corpus: Corpus) -> None:
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


def test_an_answer_ends_at_its_eos(corpus: Corpus) -> None:
    questions = corpus.questions
    encode = questions.tokenizer.encode
    right = [encode(target) for target in questions.targets]
    assert questions.exact_match(right) == 1.0
    assert questions.eos_token_id is not None
    assert questions.exact_match([[questions.eos_token_id, *ids] for ids in right]) == 0.0
    junk = [questions.eos_token_id, *encode("junk")]
    assert questions.exact_match([[*ids, *junk] for ids in right]) == 1.0
