"""What a user probably meant: the real key or spelling that is nearest to what was typed."""

from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import NoReturn

import yaml
from hydra._internal.utils import get_args_parser

from study.config.compose import CONF
from study.config.keys import known_keys
from study.errors import StudyError, given

MOST_SUGGESTIONS = 3
_ALIKE = 0.65
"""The least likeness (:mod:`difflib`) of a word and of what it may stand for."""
_SYNONYMS = {
    "r": "adapter.rank",
    "rule": "adapter.scaling",
    "use_rslora": "adapter.scaling=rslora",
    "p": "adapter.exponent",
    "learning_rate": "optimizer.lr",
    "lr_scheduler_type": "train.schedule",
    "lr_scheduler": "train.schedule",
    "batch": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "max_grad_norm": "train.clip",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "sequence_len": "data.sequence_length",
    "dataset": "data",
    "base_model": "model",
    "model_name_or_path": "model.path",
    "load_in_4bit": "model.quant_bits=4",
    "load_in_8bit": "model.quant_bits=8",
    "bf16": "precision=bf16",
    "output_dir": "results_dir",
    "report_to": "tracker",
    "log_with": "tracker",
}
"""What names of PEFT, transformers and Axolotl stand for that are spelt differently here: a key, or
a key with its value."""
_SHELL_COMPLETION = 'for completion in a shell: eval "$(study completion bash)"'


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``study train`` as Hydra's parser accepts them: options before overrides.

    Raises :class:`StudyError`, with the corrected text, for an option that does not exist, a word
    that is no override, a list with a comma too many, and an added key that nothing would read.
    """
    parser = get_args_parser()
    parser.error = _refuse
    parsed, others = parser.parse_known_args(arguments)
    if parsed.shell_completion:
        raise StudyError(_SHELL_COMPLETION)
    for option in others:
        if option.startswith("-"):
            raise StudyError(_wrong_option(option, arguments, parser))
    overrides = [*parsed.overrides, *others]
    for place, override in enumerate(overrides):
        _check_override(override, overrides, place)
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    return [*options, *overrides]


def unknown_key(key: str, siblings: Iterable[str], arguments: Sequence[str] = ()) -> str:
    """The line about ``key``, which does not exist. ``siblings``: the keys that do, beside it."""
    beside = list(siblings)
    # Hydra's error about trian.steps=3 is about trian alone.
    typed = next((text for text in arguments if f"{_key_of(text)}.".startswith(f"{key}.")), key)
    word, equals, value = typed.lstrip("+").partition("=")
    group = word.rpartition(".")[0]
    if options := _options_with(word):
        some = f"one of {', '.join(options)}" if len(options) > 1 else options[0]
        return f"{word} is a key of {some} only: give that, or remove {word}"
    keys = [*known_keys(), *(f"{group}.{name}" for name in beside if group)]
    if likely := meant(word, keys):
        return f"unknown key {word}: did you mean {_written(likely, value if equals else None)}?"
    return f"unknown key {word}: choose from {', '.join(beside)}"


def _options_with(key: str) -> list[str]:
    """The options of a group, such as ``optimizer=sgd``, which have a key that others lack."""
    group, _, name = key.rpartition(".")
    files = sorted((CONF / group).glob("*.yaml")) if group in known_keys() else []
    return [f"{group}={file.stem}" for file in files if name in yaml.safe_load(file.read_text())]


def meant(word: str, keys: Iterable[str]) -> list[str]:
    """The keys that ``word`` probably stands for, likeliest first.

    >>> meant("rank", ["adapter.rank", "seed"]), meant("adapter.rnak", ["adapter.rank", "seed"])
    (['adapter.rank'], ['adapter.rank'])
    """
    if word in _SYNONYMS:
        return [_SYNONYMS[word]]
    every = list(dict.fromkeys(keys))
    group, _, last = word.rpartition(".")
    if group:
        inside = [key.removeprefix(f"{group}.") for key in every if key.startswith(f"{group}.")]
        if near := get_close_matches(last, inside, 1, _ALIKE):
            return [f"{group}.{near[0]}"]
    by_last: dict[str, list[str]] = {}
    for key in every:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    near = get_close_matches(last, by_last, 1, _ALIKE)
    found = by_last[near[0]] if near else [_SYNONYMS[last]] if last in _SYNONYMS else []
    if group:
        return sorted(found, key=lambda key: -SequenceMatcher(None, word, key).ratio())[:1]
    return found[:MOST_SUGGESTIONS]


def _check_override(override: str, overrides: Sequence[str], place: int) -> None:
    key, equals, value = override.partition("=")
    if override.startswith("~"):
        return
    if not equals:
        raise StudyError(_wrong_word(override, overrides, place))
    if not key.lstrip("+"):
        raise StudyError(
            f"{given(override)} is not key=value: write an override such as adapter.rank=64"
        )
    if _has_empty_parts(value):
        raise StudyError(
            f"{given(override)} has a comma too many: write {_joined(overrides, place)}"
        )
    added = key.lstrip("+")
    if key != added and added not in known_keys() and "." not in added:
        is_read = any(f"${{{added}" in other for other in overrides)
        likely = [known for known in meant(added, known_keys()) if known.endswith(f".{added}")]
        if likely and not is_read:
            raise StudyError(
                f"{given(override)} adds a key that nothing reads: write {_written(likely, value)}"
            )


def _has_empty_parts(value: str) -> bool:
    """Whether a list of alternatives, such as ``4,8,``, has one that is empty."""
    return "," in value and not set(value) & set("'\"[]{}()") and "" in value.split(",")


def _wrong_word(word: str, overrides: Sequence[str], place: int) -> str:
    """The line about a word that is no override."""
    earlier = overrides[place - 1] if place and "=" in overrides[place - 1] else ""
    keys = [key for key in known_keys() if f".{key}".endswith(f".{word}")]
    options = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
    groups = [group for group, option in options if option == word]
    if keys:
        value = next((text for text in overrides[place + 1 :] if text != "="), "...")
        fix = _written(keys[:MOST_SUGGESTIONS], value)
    elif groups and _key_of(earlier) not in groups:
        fix = _written(groups[:MOST_SUGGESTIONS], word)
    elif earlier:
        joined = _joined(overrides, place - 1)
        fix = f"-m {joined}" if "," in joined else joined
    else:
        fix = "an override such as adapter.rank=64"
    return f"{given(word)} is not key=value: write {fix}"


def _joined(overrides: Sequence[str], place: int) -> str:
    """The override at ``place``, with the words that follow it as further alternatives."""
    words = list(overrides[place : place + 1])
    for word in overrides[place + 1 :]:
        if "=" in word:
            break
        words.append(word)
    key, _, first = words[0].partition("=")
    parts = [part.strip() for text in (first, *words[1:]) for part in text.split(",")]
    return given(f"{key}={','.join(part for part in parts if part)}")


def _wrong_option(option: str, arguments: Sequence[str], parser: ArgumentParser) -> str:
    """The line about an option that does not exist."""
    name, equals, value = option.lstrip("-").partition("=")
    following = arguments[arguments.index(option) + 1 :][:1]
    values = [value] if equals else [text for text in following if "=" not in text]
    real = [flag for action in parser._actions for flag in action.option_strings]
    near = [] if values else get_close_matches(option, [*real, "--plan"], 1, 0.7)
    if near:
        return f"unknown option {given(option)}: did you mean {near[0]}?"
    if likely := meant(name.replace("-", "_"), known_keys()):
        written = _written(likely, *values[:1] or ["..."])
        return f"unknown option {given(option)}: keys have no dashes, so write {written}"
    return f"unknown option {given(option)}: see study train --help and --hydra-help"


def _written(keys: Sequence[str], value: str | None = None) -> str:
    """``adapter.rank=4``, or several keys with ``or`` between them."""
    is_whole = value is None or any("=" in key for key in keys)
    return " or ".join(key if is_whole else given(f"{key}={value}") for key in keys)


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _refuse(message: str) -> NoReturn:
    raise StudyError(f"{message}: see study train --help and --hydra-help")
