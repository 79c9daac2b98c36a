"""Conversations as text: the tokens and the learned ones are those of transformers and of TRL."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from study.config import DataConfig, ModelConfig
from study.data import Document, Example
from study.data.chat import CHATML, ChatTemplate
from study.data.tokens import Encoder, tokenised
from study.errors import StudyError
from study.models import load_tokenizer, tiny

trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"

BYTES = load_tokenizer(ModelConfig("tiny"))

ROLES = ("system", "user", "assistant", "user", "assistant")


def said(*texts, first=1):
    """A conversation; ``first=0``: the first text is the system's."""
    roles = zip(ROLES[first:], texts, strict=False)
    return [{"role": role, "content": text} for role, text in roles]


SHORT = said("hi there", "hello")
LONG = said("Be kind.", "hi", "hello  you", "é?", "yes", first=0)


def trained(trim_offsets):
    """A byte-level BPE with merges across words, and with chatml's own tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["hello you assistant\n yes? hi there\n\n"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", bos_token="<eos>")


TOKENIZERS = {"bytes": BYTES, "merges": trained(False), "trimmed places": trained(True)}


def template(text, tokenizer=BYTES, folder=None):
    """The template of a file, a name or, with ``folder``, a text."""
    if folder is not None:
        path = folder / "template.jinja"
        path.write_text(str(text))
        text = path
    config = DataConfig("file", chat_template=None if text is None else str(text))
    return ChatTemplate(config, tokenizer)


def tokens(row, tokenizer, eos=0):
    """The tokens of a row, and which of them are learned."""
    arrays = tokenised([row], Encoder(tokenizer, eos, 4000))
    return arrays["tokens"].tolist(), arrays["learned"].tolist()


contents = st.text(st.characters(codec="utf-8"), min_size=1, max_size=9)


@settings(max_examples=60)
@given(texts=st.lists(contents, min_size=2, max_size=4), name=st.sampled_from(list(TOKENIZERS)))
def test_any_text_has_the_tokens_and_the_marks_of_transformers(texts, name):
    messages, tokenizer = said(*texts), TOKENIZERS[name]
    path = TEMPLATES / "qwen3_instruct_2507_training.jinja"
    theirs = tokenizer.apply_chat_template(
        messages,
        chat_template=path.read_text(),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    row = template(path, tokenizer).conversation(messages, None, 0, "row")
    ids, learned = tokens(row, tokenizer)
    assert ids == theirs["input_ids"]
    assert learned == [bool(mask) for mask in theirs["assistant_masks"]]


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl"])
def test_turns_without_marks_are_those_that_trl_marks(name):
    """TRL's training template of a model is its own template with marks."""
    own = template(TEMPLATES / f"{name}.jinja")
    marked = template(TEMPLATES / f"{name}_training.jinja")
    assert not own.marks_turns
    assert marked.marks_turns
    for messages in (SHORT, LONG):
        found, wanted = (each.conversation(messages, None, 0, "row") for each in (own, marked))
        assert found == wanted


@pytest.fixture
def of_trl(tmp_path):
    """The tokens of a row and whether each is a label, after all of TRL's preparation."""

    def prepared(row, chat_template=None):
        tokenizer = load_tokenizer(ModelConfig("tiny"))
        tokenizer.chat_template = chat_template
        config = trl.SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=None
        )
        trainer = trl.SFTTrainer(
            tiny.build(),
            args=config,
            train_dataset=datasets.Dataset.from_list([row]),
            processing_class=tokenizer,
        )
        (found,) = trainer.train_dataset
        labels = found.get("labels", found["input_ids"])
        return found["input_ids"], [label != -100 for label in labels]

    return prepared


@pytest.mark.parametrize("name", ["chatml", "glm4moe"])
def test_the_last_turn_is_what_trl_takes_for_a_completion(of_trl, name):
    path = "chatml" if name == "chatml" else TEMPLATES / f"{name}.jinja"
    text = CHATML if name == "chatml" else path.read_text()
    theirs = of_trl({"prompt": SHORT[:-1], "completion": SHORT[-1:]}, text)
    for prompt in (0, 1):
        assert tokens(template(path).conversation(SHORT, None, prompt, "row"), BYTES) == theirs


def test_turns_after_a_prompt_are_what_trl_takes_for_a_completion(of_trl):
    """All that follows the prompt is learned, the turn of the user and marked turns too."""
    path = TEMPLATES / "qwen2_5_vl_training.jinja"
    theirs = of_trl({"prompt": LONG[:2], "completion": LONG[2:]}, path.read_text())
    made = template(path).conversation(LONG, None, 2, "row")
    assert tokens(made, BYTES) == theirs
    assert made.answer == "yes"


def test_texts_and_completions_are_those_of_trl(of_trl):
    eos, text = BYTES.eos_token_id, "é\n"
    assert tokens(Document(text), BYTES, eos=eos) == of_trl({"text": text})
    theirs = of_trl({"prompt": "q: ", "completion": text})
    assert tokens(Example("q: ", text), BYTES, eos=eos) == theirs


def test_tools_are_passed_on_and_the_date_is_the_same_every_day():
    made = template(TEMPLATES / "llama3_1.jinja").conversation(SHORT, None, 0, "row")
    assert "Today Date: 26 Jul 2024" in made.text
    tool = {"type": "function", "function": {"name": "sum", "parameters": {}}}
    path = TEMPLATES / "qwen3.jinja"
    made = template(path).conversation(SHORT, [tool], 0, "row")
    theirs = BYTES.apply_chat_template(
        SHORT, tools=[tool], chat_template=path.read_text(), tokenize=False
    )
    assert made.text == theirs
    assert '"name": "sum"' in made.text


REFUSED = {
    "{% if %}": r"fails on the conversation \(TemplateSyntaxError",
    "{{ raise_exception('only users') }}": r"fails on the conversation \(TemplateError: only users",
    "{{ ''.__class__.__mro__ }}": r"fails on the conversation \(SecurityError",
    "{% generation %}{% endgeneration %}": "marks no turn",
    "{% for m in messages %}{{ m.role }}{% endfor %}": "leaves out what the assistant says",
    "{{ messages | length }}hello{{ messages | length }}": "changes earlier turns",
    "{# long #}" * 200_000: "is larger than 1 MiB",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_template_of_a_stranger_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(StudyError, match=REFUSED[text]) as caught:
        template(text, folder=tmp_path).conversation(SHORT, None, 0, "row 1")
    assert "chatml" in str(caught.value)
    with pytest.raises(StudyError, match="change its turns, or give the path of a Jinja file"):
        template("chatml").conversation([{"role": "assistant"}], None, 0, "row 1")


def test_no_template(tmp_path):
    with pytest.raises(StudyError, match=r"has no chat template: give data\.chat_template=chatml"):
        template(None)
    with pytest.raises(StudyError, match="does not exist"):
        template(tmp_path / "absent")
    with pytest.raises(StudyError, match="is not a file"):
        template(Path("/dev/zero"))
