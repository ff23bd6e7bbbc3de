"""Encoded images to the model's, in threads, by what they cost."""
