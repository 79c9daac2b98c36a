"""From configurations to results. Nothing is imported here: ``study status`` needs no torch."""
