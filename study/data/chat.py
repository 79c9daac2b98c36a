"""Conversations to text by a chat template, and the places of the assistant's turns in it."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from study.config import DataConfig
from study.data.examples import Conversation
from study.errors import StudyError, one_line, short
from study.reading import read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""``data.chat_template=chatml``: the template of this name in Axolotl, TRL and LLaMA-Factory."""

_TODAY = date(2024, 7, 26)
"""A fixed date for templates that ask for it, such as Llama's: the data must not change daily."""
_ASKS_FOR_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MOST_BYTES = 1 << 20
"""Of a template's file. Those in use have at most 30 KB."""
_FIX = "give data.chat_template=chatml, or the path of a Jinja file"


class ChatTemplate:
    """The chat template of a configuration, for one tokenizer."""

    def __init__(self, config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
        text, self.named = _template(config, tokenizer)
        self.fix = "give the path of a Jinja file" if text == CHATML else _FIX
        self.special: Mapping[str, Any] = tokenizer.special_tokens_map
        self.template = _ASKS_FOR_DATE.sub(lambda m: repr(_TODAY.strftime(m[2])), text)
        self.marks_turns = _GENERATION.search(self.template) is not None

    def conversation(
        self, messages: Sequence[Message], tools: Any, prompt: int, where: str
    ) -> Conversation:
        """The text of ``messages``, and where in it the assistant's turns are.

        The template marks a turn with ``{% generation %}``; otherwise it is the text from the
        generation prompt to the end of the turn. If the first ``prompt`` messages are a prompt, all
        that follows is one turn, as in TRL's data sets of prompts and completions.
        """
        text, marked = self._render(messages, tools, where)
        turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if prompt:
            learned = [(self._start(text, messages, prompt, tools, where), len(text))]
        elif self.marks_turns:
            learned = [(start, end) for start, end in marked if end > start]
        else:
            learned = [self._turn(text, messages, n, tools, where) for n in turns]
        if not learned:
            raise StudyError(f"{where}: {self.named} marks no turn of the assistant: {self.fix}")
        last = messages[-1 if prompt else turns[-1]]
        if _said(last) not in text:  # templates of vision models read parts only
            raise StudyError(
                f"{where}: {self.named} leaves out what the assistant says: {self.fix}"
            )
        return Conversation(text, tuple(learned), last.get("content") or "")

    def _start(self, text: str, messages: Sequence[Message], n: int, tools: Any, where: str) -> int:
        """Where turn ``n`` begins, by rendering the conversation up to it."""
        asked, _ = self._render(messages[:n], tools, where, prompt=True)
        start = len(os.path.commonprefix((asked, text)))  # noqa: RUF071  texts, not paths
        # Some generation prompts begin a thought that the turn does not have.
        if start < len(asked) and not text.startswith(self._render(messages[:n], tools, where)[0]):
            raise self._changes_turns(where)
        return start

    def _turn(
        self, text: str, messages: Sequence[Message], n: int, tools: Any, where: str
    ) -> tuple[int, int]:
        """The place of turn ``n``. Its end is found by rendering the conversation with it."""
        start = self._start(text, messages, n, tools, where)
        if n + 1 == len(messages):
            return start, len(text)
        answered, _ = self._render(messages[: n + 1], tools, where)
        if text.startswith(answered):
            return start, len(answered)
        # A template may write a turn differently while it is the last, as Qwen3's does. What
        # follows its content stays the same.
        said = _said(messages[n])
        rest = answered[answered.rfind(said) + len(said) :]
        place = text.find(said + rest, start)
        if not said or place < 0:
            raise self._changes_turns(where)
        return start, place + len(said) + len(rest)

    def _changes_turns(self, where: str) -> StudyError:
        return StudyError(
            f"{where}: {self.named} changes earlier turns when later ones follow, so no turn can "
            f"be located: mark turns with {{% generation %}}, or {self.fix}"
        )

    def _render(
        self, messages: Sequence[Message], tools: Any, where: str, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marked = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=self.marks_turns,
                add_generation_prompt=prompt,
                **self.special,
            )
        except Exception as error:  # of any kind: a template is a program
            why = f"{where}: {self.named} fails on the conversation ({one_line(error)})"
            raise StudyError(f"{why}: change its turns, or {self.fix}") from None
        return texts[0], marked[0] if self.marks_turns else []


def _said(message: Message) -> str:
    """The text of a turn, without a thought, which templates leave out of earlier turns."""
    return (message.get("content") or "").rpartition("</think>")[2].strip()


def _template(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    if config.chat_template == "chatml":
        return CHATML, "data.chat_template=chatml"
    if config.chat_template is not None:
        named = f"data.chat_template={short(config.chat_template, 200)}"
        try:
            return read_file(config.chat_template, named, _FIX, MOST_BYTES).decode(), named
        except UnicodeDecodeError as error:
            raise StudyError(f"{named} can't be read ({one_line(error)}): {_FIX}") from None
    try:
        return tokenizer.get_chat_template(), "the tokenizer's chat template"
    except ValueError:  # it has none, or several and no default
        raise StudyError(f"the model's tokenizer has no chat template: {_FIX}") from None
