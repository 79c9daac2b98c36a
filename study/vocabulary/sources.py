"""Base models and data sets: the names that ``model=`` and ``data=`` take.

:mod:`study.models` loads the models; :mod:`study.data.sources` reads the data sets.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """``reads_path``: whether the user names a file, a folder or a hub repository."""

    label: str
    reads_path: bool = False


MODELS: dict[str, Source] = {
    "smollm2": Source("SmolLM2"),
    "hf": Source("a causal LM of transformers", reads_path=True),
    "tiny": Source("a tiny random Llama"),
}

DATASETS: dict[str, Source] = {
    "pydoc": Source("documentation of Python's standard library"),
    "xbrl_extract": Source("generated XBRL filings"),
    "jsonl": Source("a JSONL file", reads_path=True),
}


def model_label(name: str) -> str:
    """The name that figures print; a path or a hub name stays as it is."""
    return name if name not in MODELS or MODELS[name].reads_path else MODELS[name].label
