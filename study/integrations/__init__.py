"""This toolkit inside other people's training, and their adapters inside this toolkit."""
