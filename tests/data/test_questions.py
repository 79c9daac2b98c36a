"""FinLoRA's rule for a correct answer, and questions as batches."""

import pytest

from study.data import Corpus
from study.data.batches import exact_match, first_label

MOODS = {"positive", "negative", "neutral"}


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
    assert first_label(answer, MOODS) == label
    assert first_label("0.125", {"0.1", "0.12", "5"}) == "0.12", "the longer of the same start"
    assert first_label("0.1 or 0.12", {"0.1", "0.12"}) == "0.1"


def test_the_share_of_right_answers() -> None:
    targets = ["positive", "Negative", " neutral", "positive"]
    answers = ["positive", "it is negative, not positive", "positive", "unclear"]
    assert exact_match(answers, targets) == 0.5
    # Another label comes first. FinLoRA's older rule (target in answer) gave 1.
    assert exact_match(["negative or positive", "negative"], ["positive", "negative"]) == 0.5


def test_questions_are_the_contexts_that_the_loss_sees(corpus: Corpus) -> None:
    questions, size = corpus.questions, 4
    seen = 0
    for (ids_BL, real_BL), trained in zip(
        questions.batches(size), corpus.heldout.batches(size), strict=True
    ):
        for ids, real, row, targets in zip(
            ids_BL, real_BL, trained.input_ids_BT, trained.targets_BT, strict=True
        ):
            context = ids[real].tolist()
            assert real.tolist() == sorted(real.tolist()), "padding is on the left"
            # The position that predicts the first token of the target.
            first = int((targets != -100).nonzero()[0])
            assert context == row[: first + 1].tolist()
            assert questions.tokenizer.decode(context).startswith("Say ")
            assert questions.targets[seen].strip().split()[0] in questions.tokenizer.decode(context)
            seen += 1
    assert seen == len(questions.targets) == len(corpus.heldout)


def test_an_answer_ends_at_its_eos(corpus: Corpus) -> None:
    questions = corpus.questions
    encode = questions.tokenizer.encode
    right = [encode(target) for target in questions.targets]
    assert questions.exact_match(right) == 1.0
    assert questions.eos_token_id is not None
    assert questions.exact_match([[questions.eos_token_id, *ids] for ids in right]) == 0.0
    junk = [questions.eos_token_id, *encode("junk")]
    assert questions.exact_match([[*ids, *junk] for ids in right]) == 1.0
