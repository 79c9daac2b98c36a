"""The work that an optimizer step does, in FLOPs of matrix products."""

import torch

from study.adapters.contraction import adapter_flops
from study.config import CellConfig
from study.training.devices import measure_matmul_rate
from study.training.run import Run

from .ways import base_and_corpus


def step_flops(config: CellConfig) -> dict[str, float]:
    """FLOPs of a step, and the device's matmul rate.

    - ``base_flops``: frozen linears, the head on targets, attention's causal half;
    - ``adapter_flops``: the adapters in the form that we choose;
    - ``factored_flops``: the adapters as LoRA is usually computed;
    - ``peak``: FLOP/s of the device's matrix product, measured now.
    """
    base, corpus = base_and_corpus(config)
    card, device = base.card, base.device
    run = Run.of(config, corpus, device)
    rank, tokens = int(config.adapter.rank), run.tokens
    can_merge = config.precision == "float32"
    forms = [
        run.contraction.choose(d, o, rank) if can_merge else "factored" for d, o in card.shapes
    ]
    text = base.model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    attention = 7 * tokens * config.data.sequence_length * text.hidden_size * text.num_hidden_layers
    linears = 4.0 * tokens * sum(d * o for d, o in card.shapes)
    ours = sum(
        adapter_flops(form, tokens, d, o, rank)
        for form, (d, o) in zip(forms, card.shapes, strict=True)
    )
    factored = sum(adapter_flops("factored", tokens, d, o, rank) for d, o in card.shapes)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return {
        "base_flops": linears + 4.0 * run.supervised * card.head + attention,
        "adapter_flops": float(ours),
        "factored_flops": float(factored),
        "peak": measure_matmul_rate(device, dtype),
    }
