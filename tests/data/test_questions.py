"""FinLoRA's rule for a correct answer, and questions as batches."""

from study.data import Corpus
from study.data.batches import exact_match


def test_the_share_of_right_answers() -> None:
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
