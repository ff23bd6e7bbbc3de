"""The edge at and beyond its limits: soak, overload, batching, fuzz."""
