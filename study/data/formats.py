"""Rows to examples: one function for each row of :data:`study.vocabulary.sources.FORMATS`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.data.chat import Message
from study.data.examples import Conversation, Document, Example, Row
from study.errors import StudyError, short, unknown
from study.vocabulary.sources import AUTO, FORMATS

Fields = Mapping[str, Any]
Chat = Callable[[Sequence[Message], Any, int, str], Conversation]
"""Writes messages, of which the first n are a prompt, and tools by the template. Last: the
place."""

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    **{name: name for name in ROLES},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "function_response"), "tool"),
}
"""Our role for each value of ``from`` in ShareGPT's rows."""

_ALPACA = "Below is an instruction that describes a task"
_ALPACA_TASK = "Write a response that appropriately completes the request.\n\n"
ALPACA = f"{_ALPACA}. {_ALPACA_TASK}### Instruction:\n{{instruction}}\n\n### Response:\n"
ALPACA_WITH_INPUT = (
    f"{_ALPACA}, paired with an input that provides further context. {_ALPACA_TASK}"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The prompts of Stanford's Alpaca (tatsu-lab/stanford_alpaca, ``train.py``), with the line break
at the end that Axolotl and LLaMA-Factory add."""


def recognised(asked: str, fields: Fields, where: str) -> str:
    """The format of a data set: ``asked``, or by the fields of its first row."""
    if asked != AUTO:
        return asked
    for name, row in FORMATS.items():
        if any(set(needed) <= set(fields) for needed in row.needs):
            return name
    found = short(list(fields)).strip("[]") or "none"
    known = "; ".join(f"{name}: {row.words}" for name, row in FORMATS.items())
    why = f"{where} has the fields {found}, which are of no format ({known})"
    raise StudyError(f"{why}: rename them, or give data.format")


def _context_target(fields: Fields, where: str, _: Chat) -> Row:
    context, target = _text(fields, "context", where), _text(fields, "target", where)
    if not target.strip():
        raise StudyError(f"{where}: 'target' is empty: fill it in or delete the line")
    return Example(context, target)


def _alpaca(fields: Fields, where: str, _: Chat) -> Row:
    instruction, output = _text(fields, "instruction", where), _text(fields, "output", where)
    if fields.get("input") is None or not _text(fields, "input", where):
        return Example(ALPACA.format(instruction=instruction), output)
    prompt = ALPACA_WITH_INPUT.format(instruction=instruction, input=fields["input"])
    return Example(prompt, output)


def _alpaca_chat(fields: Fields, where: str, chat: Chat) -> Row:
    instruction, output = _text(fields, "instruction", where), _text(fields, "output", where)
    more = "" if fields.get("input") is None else _text(fields, "input", where)
    messages = [
        {"role": "user", "content": f"{instruction}\n{more}" if more else instruction},
        {"role": "assistant", "content": output},
    ]
    if fields.get("system"):
        messages.insert(0, {"role": "system", "content": _text(fields, "system", where)})
    return chat(messages, None, 0, where)


def _completion(fields: Fields, where: str, chat: Chat) -> Row:
    if "text" in fields and "prompt" not in fields:
        return Document(_text(fields, "text", where))
    if isinstance(fields.get("prompt"), list):  # as TRL has them
        prompt, completion = (_turns(fields, key, where) for key in ("prompt", "completion"))
        if not completion:
            raise StudyError(f"{where} has no turn in 'completion': add one or delete the row")
        return chat([*prompt, *completion], _tools(fields, where), len(prompt), where)
    return Example(_text(fields, "prompt", where), _text(fields, "completion", where))


def _messages(fields: Fields, where: str, chat: Chat) -> Row:
    has_messages = fields.get("messages") is not None or "conversations" not in fields
    messages = _turns(fields, "messages" if has_messages else "conversations", where)
    own = bool(messages) and messages[0]["role"] == "system"
    if fields.get("system") is not None and not own:  # a turn comes before the field, as in Axolotl
        system = _text(fields, "system", where)
        messages = [{"role": "system", "content": system}, *messages] if system else messages
    if not any(message["role"] == "assistant" for message in messages):
        raise StudyError(f"{where} has no turn of the assistant: add one or delete the row")
    return chat(messages, _tools(fields, where), 0, where)


def _turns(fields: Fields, key: str, where: str) -> list[Message]:
    turns = enumerate(_value(fields, key, list, where), start=1)
    return [_message(turn, f"{where}, turn {number}") for number, turn in turns]


def _message(turn: Any, where: str) -> Message:
    """A turn in OpenAI's form: ``role``, ``content`` and other fields for the template."""
    if not isinstance(turn, dict):
        raise StudyError(f'{where} is {short(turn)}: write {{"role": "user", "content": "..."}}')
    if "from" in turn and "role" not in turn:
        role = _text(turn, "from", where)
        if role not in SHAREGPT_ROLES:
            raise unknown(f"'from' in {where}:", role, SHAREGPT_ROLES)
        return {"role": SHAREGPT_ROLES[role], "content": _content(turn, "value", where)}
    message = {key: value for key, value in turn.items() if value is not None}
    role = _text(message, "role", where)
    if role not in ROLES:
        raise unknown(f"role in {where}:", role, ROLES)
    if "tool_calls" in message and "content" not in message:
        return message
    return message | {"content": _content(message, "content", where)}


def _content(turn: Fields, key: str, where: str) -> str:
    """The text of a turn, or the texts of its parts. Images and sound are refused."""
    if not isinstance(parts := turn.get(key), list):
        return _text(turn, key, where)
    for part in parts:
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            raise StudyError(f"{where}: {short(part)} is not text: keep the parts of text only")
    return "".join(_text(part, "text", where) for part in parts)


def _tools(fields: Fields, where: str) -> list[Any] | None:
    tools = fields.get("tools") or None
    try:
        found = json.loads(tools) if isinstance(tools, str) else tools
        if found is None or all(isinstance(tool, dict) for tool in found):
            return found
    except (ValueError, TypeError, RecursionError):  # no JSON; not a list
        pass
    raise StudyError(f"{where}: 'tools' is no list of JSON schemas: write such a list")


def _text(fields: Fields, key: str, where: str) -> str:
    return str(_value(fields, key, str, where))


def _value(fields: Fields, key: str, kind: type, where: str) -> Any:
    if isinstance(fields.get(key), kind):
        return fields[key]
    of_type = f", but {key!r} is of type {type(fields[key]).__name__}" if key in fields else ""
    keys = short(list(fields)).strip("[]") or "none"
    why = f"{where} needs a {kind.__name__} as {key!r}{of_type} (its keys: {keys})"
    raise StudyError(f"{why}: write the fields of one format in every row")


READERS: dict[str, Callable[[Fields, str, Chat], Row]] = {
    "context_target": _context_target,
    "messages": _messages,
    "alpaca": _alpaca,
    "alpaca_chat": _alpaca_chat,
    "completion": _completion,
}
"""By name, the function of a format. It gets the fields of a row, its place and the template."""
