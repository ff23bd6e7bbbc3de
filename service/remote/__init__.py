"""The way to the large models: which one, over which wire."""
