"""Bundles to confidences: what an edge needs of models, and nothing else."""
