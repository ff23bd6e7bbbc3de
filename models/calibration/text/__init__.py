"""Calibration of models that write text: their drafts, what counts as right, and the learned rule."""
