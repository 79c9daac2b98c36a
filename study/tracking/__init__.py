"""A copy of the results in a tracker. The store stays complete without it."""
