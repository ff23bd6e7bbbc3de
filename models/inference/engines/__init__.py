"""What computes a model's logits, a file each: items in, NumPy out. registry.py has the list."""
