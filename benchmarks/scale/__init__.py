"""``study bench scale``: what the commands take on a study of thousands of tiny cells."""
