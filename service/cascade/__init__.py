"""The story: the small model answers, the gate decides, the large model answers what was deferred."""
