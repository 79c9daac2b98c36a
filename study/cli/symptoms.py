"""``study advise --symptom``: symptoms of failed training, their causes and fixes."""

SYMPTOMS: dict[str, dict[str, str]] = {
    "no-learning": {
        "seen": "The loss hardly falls under AdamW, and a higher rank does not help.",
        "why": (
            "The learning rate is too low. Under AdamW a step lowers the loss in proportion to "
            "lr x gamma x r, which is lr x alpha for LoRA at every rank. On SmolLM2 (LoRA, rank "
            "256, alpha 16, {steps} steps) lr {slow_lr:g} lowered the loss by {slow_fall:.2f} and "
            "lr {lora_lr:g} by {lora_fall:.2f}."
        ),
        "set": (
            "The learning rate 3 to 10 times as high; or alpha, which does the same while A hardly "
            "moves. rslora at the same alpha is a step sqrt(r) times as large."
        ),
        "check": "study advise {config} prints a command that sweeps five rates on your model.",
        "page": "docs/no-learning.md",
    },
    "diverged": {
        "seen": "The loss rises above that of the base, or becomes NaN.",
        "why": (
            "The learning rate is too high for gamma. rslora's gamma is sqrt(r) times lora's: on "
            "SmolLM2 at rank 256 (alpha 16, {steps} steps) lr {high_lr:g} ended at {high_lora:.2f} "
            "under lora and at {high_rslora:.2f} under rslora, whose best rate is {rslora_lr:g}. "
            "The base has {base:.2f}."
        ),
        "set": (
            "For a change from lora to rslora at the same alpha: the rate divided by sqrt(r), or "
            "alpha divided by sqrt(r). Otherwise the rate 3 to 10 times as low, and a warm-up."
        ),
        "check": "study advise {config} --rule rslora prints the rate and alpha of the same run.",
        "page": "docs/diverged.md",
    },
    "grad-norm": {
        "seen": "The gradient norm is 8 times as large after changing lora to rslora at rank 64.",
        "why": (
            "At step 0 it goes as gamma sqrt(r): rslora's is sqrt(r) times lora's at the same "
            "alpha. On SmolLM2 it goes as r^{lora_norm:.2f} under lora and r^{rslora_norm:.2f} "
            "under rslora (ranks 4 to 256)."
        ),
        "set": (
            "Nothing under AdamW, which divides the norm out. Under SGD, or if max_grad_norm clips "
            "most steps: the rate or the limit by the same factor."
        ),
        "check": "study report on a recorded run (docs/peft.md) shows norms and clip factors.",
        "page": "docs/grad-norm.md",
    },
    "nothing-changes": {
        "seen": "The output is the same with and without the adapter, although it trains.",
        "why": (
            "In bf16 an output below 1/512 of the layer's is rounded away. On SmolLM2 (LoRA, rank "
            "4, lr {lost_lr:g}) {lost_1:.0%} was lost after 1 update and {lost_10:.0%} after 10. "
            "Also: B is 0 before the first update, and so is the rate of a warm-up's first step."
        ),
        "set": "round_once(model) for PEFT (docs/bf16.md), a higher rate or alpha, or float32.",
        "check": "study report on a recorded run says how much was lost (statistic swallowed).",
        "page": "docs/no-learning.md#in-bf16",
    },
}
"""Symptom, cause, fix and check in sentences, and the page with more. Words in braces are
``facts`` of ``study/analysis/advice.json``, and the configuration."""
