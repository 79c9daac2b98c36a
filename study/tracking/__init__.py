"""A copy of the results in an experiment tracker. The store stays complete without it, and its
error prints one line.
"""
