"""Tables of the user's choices and of all measured quantities: one row for each thing."""
