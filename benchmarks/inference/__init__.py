"""What an adapter costs at inference: the base, merged adapters and unmerged adapters.

- :mod:`.forms`: what is timed; :mod:`.timing`: the measurement; :mod:`.memory`: live tensors;
- :mod:`.costs`, :mod:`.figure`: medians, ratios and verdict, and the figure;
- :mod:`.command`: ``study bench inference``.
"""
