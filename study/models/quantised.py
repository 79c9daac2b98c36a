"""Quantised bases: the weights of a model's block linears held in 8 or 4 bits by bitsandbytes, through transformers.

8 bits are LLM.int8()'s, a scale per output (Dettmers et al. 2022, arXiv 2208.07339); 4 bits are QLoRA's NF4, a scale
per 64 weights that is itself quantised (Dettmers et al. 2023, arXiv 2305.14314). Embeddings, norms and the head stay
as they are. Whoever multiplies by such a weight dequantises it for the length of the product, so nothing that needs a
dense one can be had (:func:`study.adapters.dense_weight`). Adapters and their gradients are float32 as ever.

On a CPU the 8-bit product is one with the dequantised weight. On CUDA it is LLM.int8()'s own, in fp16: inputs are
rounded to 8 bits but for the columns of outliers, which are looked for over the whole batch. There a cell's numbers
would depend on what is folded with it, so 8-bit cells are not folded (:func:`study.sweeps.run.folds`).
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from study.errors import StudyError
from study.models.quiet import quiet

SCHEMES = {8: "int8", 4: "nf4"}
"""What a fingerprint calls each number of bits."""
BLOCK = 64
"""Weights under one scale in 4 bits: what bitsandbytes takes where nothing is said."""


def check_installed() -> None:
    """Raises :class:`StudyError` where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise StudyError(
            "model.quant_bits needs bitsandbytes: pip install 'study[quant]', or model.quant_bits=null"
        )


def check_rows(named: str, linears: Mapping[str, Any]) -> None:
    """Raises :class:`StudyError` where a row of some weight is no whole number of NF4's blocks.

    A scale then covers the end of one row and the start of the next, and bitsandbytes' AVX-512 kernel (0.50) takes
    the wrong one: an error of 0.27 of the weight where it should be 0.09, without a word.
    """
    for path, linear in linears.items():
        d = linear.nx if isinstance(linear, Conv1D) else linear.in_features
        if d % BLOCK:
            raise StudyError(
                f"model.quant_bits=4 scales {BLOCK} weights at a time, and {path} of {named} has rows of {d}: "
                "use model.quant_bits=8 or null"
            )


def recipe(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How transformers is to quantise while it loads; ``dtype`` is what products are computed in."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def bits_of(held: dict[str, Any]) -> int | None:
    """The bits of a checkpoint's own ``quantization_config``; ``None`` where it is not bitsandbytes'."""
    return 4 if held.get("load_in_4bit") else 8 if held.get("load_in_8bit") else None


def rebuilt(model: PreTrainedModel, device: torch.device, dtype: torch.dtype, bits: int) -> Any:
    """A model in memory as transformers would load it from a checkpoint: on ``device``, in ``dtype``, quantised."""
    with quiet():
        return type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=model.state_dict(),
            device_map=device,
            dtype=dtype,
            quantization_config=recipe(bits, dtype),
        )


def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Put the quantised linears into the one mode that computes alike in every pass; products are in ``dtype``.

    Out of training mode bitsandbytes takes other ways on a CPU: 8-bit products round their inputs, and 4-bit weights
    repack themselves for bf16 on the first pass without a gradient. An evaluation would then be of another model than
    was trained. A linear has nothing else to its mode, and a bank leaves that of its base alone.

    All that is not quantised is brought to ``dtype``: a checkpoint that comes quantised keeps what it was made for.
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
