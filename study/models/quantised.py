"""Quantised bases: block linears in 8 bits or NF4, by bitsandbytes through transformers.

- 8 bits: LLM.int8(), one scale per output (Dettmers et al. 2022, arXiv 2208.07339);
- 4 bits: QLoRA's NF4, one scale per 64 weights, itself quantised (Dettmers et al. 2023, arXiv
  2305.14314).

Embeddings, norms, head and adapters are not quantised. Weights are dequantised for each product
only, so :func:`study.adapters.dense_weight` is None.

On CUDA, 8-bit products are LLM.int8()'s in fp16: outlier columns are chosen from the whole batch.
So :func:`study.sweeps.packs.folds` trains 8-bit cells alone; otherwise their numbers would depend
on the other cells of the fold.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from study.errors import StudyError
from study.models.messages import quiet
from study.vocabulary.extras import install

SCHEMES = {8: "int8", 4: "nf4"}
"""The name of each number of bits in a fingerprint."""
BLOCK = 64
"""Weights per scale in 4 bits: the default of bitsandbytes."""


def check_installed() -> None:
    if find_spec("bitsandbytes") is None:
        raise StudyError(f"model.quant_bits needs bitsandbytes: {install('quant')}, or use null")


def check_rows(named: str, rows: Mapping[str, int]) -> None:
    """Refuse a weight whose rows are not a multiple of :data:`BLOCK`. ``rows``: their lengths.

    A scale would then cover the end of one row and the start of the next. There the AVX-512 kernel
    of bitsandbytes (0.50) uses the wrong scale without a warning.
    """
    for path, d in rows.items():
        if d % BLOCK:
            why = f"model.quant_bits=4 needs rows of a multiple of {BLOCK} weights"
            raise StudyError(f"{why}, but {path} of {named} has rows of {d}: use 8 or null")


def check_checkpoint(named: str, quantisation: dict[str, Any], quant_bits: int | None) -> None:
    """Refuse a checkpoint that bitsandbytes did not quantise to ``quant_bits``."""
    bits = next((bits for bits in SCHEMES if quantisation.get(f"load_in_{bits}bit")), None)
    if bits is None:
        why = f"{named} is quantised ({quantisation.get('quant_method')})"
        raise StudyError(f"{why}: give its unquantised checkpoint, with model.quant_bits=4 or 8")
    if bits != quant_bits:
        raise StudyError(f"{named} has weights in {bits} bits: use model.quant_bits={bits}")


def bnb_config(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantisation for ``from_pretrained``. Products are computed in ``dtype``."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def reloaded(model: PreTrainedModel, device: torch.device, dtype: torch.dtype, bits: int) -> Any:
    """A model in memory as if loaded from a checkpoint: on ``device``, in ``dtype``, quantised."""
    with quiet():
        return type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=model.state_dict(),
            device_map=device,
            dtype=dtype,
            quantization_config=bnb_config(bits, dtype),
        )


def use_one_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Compute every product in ``dtype`` and in the same way in every pass.

    In eval mode on a CPU, bitsandbytes rounds the inputs of 8-bit products, and repacks 4-bit
    weights for bf16 in the first pass without gradients. So the quantised linears stay in train
    mode, which changes nothing else in them. Other parameters are cast to ``dtype``.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt | Linear4bit):
            module.train()
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
