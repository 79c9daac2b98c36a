"""From configurations to results: cells, packs, and the loop that trains and records them.

Nothing is imported here, so that ``study status`` starts without torch.
"""
