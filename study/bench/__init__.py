"""What things cost, measured: one module a question, a table out."""
