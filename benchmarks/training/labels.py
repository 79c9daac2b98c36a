"""The ways to train, as tables and figures name them. No torch and no PEFT, unlike ``ways.py``."""

LABELS = {
    "trainer": "PEFT + Trainer",
    "loop": "PEFT, tuned loop",
    "alone": "ours, one cell at a time",
    "packed": "ours, packed",
    "compiled": "ours, packed and compiled",
}
"""By the name of the way."""
