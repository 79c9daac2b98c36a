"""The words of tables and figures. No torch and no PEFT, unlike ``ways.py``."""

LABELS = {
    "trainer": "PEFT + Trainer",
    "loop": "PEFT, tuned loop",
    "alone": "ours, one cell at a time",
    "packed": "ours, packed",
    "compiled": "ours, packed and compiled",
    "folded": "ours, packed and folded",
    "single": "ours, a pack for each cell",
    "products": "the products of our steps alone",
}
"""The ways to train, by the name of the way."""
PLAIN = "no probes"
"""The single steps of the suite ``probes`` that its other steps are compared with."""
NOT_MEASURED = "not measured"
"""What a table says where no number was measured."""
