"""The work of an optimizer step in FLOPs of matrix products, and how fast this machine does it."""

import torch

from study.adapters.contraction import adapter_flops
from study.config import CellConfig
from study.training.devices import measure_matmul_rate
from study.training.run import Run

from .products import Products
from .ways import base_and_corpus

PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square product, by device: large enough that a larger one is no faster."""


def step_limits(config: CellConfig) -> dict[str, float]:
    """The FLOPs of a step, and two limits of its speed, measured now.

    - ``base_flops``: frozen linears, the head on targets, attention's causal half;
    - ``adapter_flops``: the adapters in the form that we choose;
    - ``factored_flops``: the adapters as LoRA is usually computed;
    - ``products``: seconds of our step's products alone (:mod:`benchmarks.training.products`);
    - ``peak``: FLOP/s of the device's square matrix product.
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
        "products": Products.of_step(config, base, corpus).seconds(device),
        "peak": measure_matmul_rate(device, dtype, PEAK_SIDE[device.type]),
    }
