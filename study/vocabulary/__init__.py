"""Tables of the user's choices and of all measured quantities: one row for each thing.

They import only the standard library. ``docs/extending.md`` says how to add a row.
"""
