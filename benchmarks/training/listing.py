"""What is timed against PEFT, in words; without torch, so that the help is instant."""

SUITES = {
    "sweep": "All ranks under both rules, 1024 tokens a step, all four ways.",
    "large-steps": "All ranks, 4096 tokens a step, tuned loop against ours.",
    "compiled": "Five steps of 1024 tokens at all ranks: tuned loop, ours, and ours with "
    "pack.compile.",
    "tokens": "256 to 16384 tokens a step at a low rank, tuned loop against ours.",
    "short": "Ten steps of 64 tokens, both rules: one process for each cell against one for "
    "all of ours.",
    "start-up": "One step in a fresh process: study train against a PEFT script.",
    "probes": "Twenty steps at a low rank, with and without probes, three times in turn; single "
    "steps at ranks 16 and 1024 by the sites that they measure.",
    "bf16": "Ours in float32 and in bf16 in turn, and the tuned loop in bf16.",
    "folds": "All ranks under both rules in one pack: a cell in a forward pass against as many as "
    "pack.fold=auto chooses.",
    "layers": "Adapters on the last quarter, the last half and all of the blocks.",
}
"""By name, in the order in which they run."""
