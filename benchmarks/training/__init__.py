"""How long training takes, against PEFT.

- :mod:`.ways`: the ways to train one cell; :mod:`.processes`: a way in a process of its own;
  :mod:`.labels`: their names;
- :mod:`.suites`: what is timed; :mod:`.flops`: the work that a step does;
- :mod:`.summary`, :mod:`.figure`: the tables as text, and the figure;
- :mod:`.command`: ``study bench``.
"""
