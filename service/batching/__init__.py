"""The queue in front of the small model, and where it runs."""
