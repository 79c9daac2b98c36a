"""Tables of what a user can choose and what a reader can see: one row for each thing.

They import nothing but the standard library. ``docs/extending.md`` says how to add a row.
"""
