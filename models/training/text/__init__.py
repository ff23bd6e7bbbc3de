"""Tuning of models that write text: the same two stages as for labels, with the losses on an answer's tokens."""
