"""From data to a bundle: networks, losses, stages, sweeps."""
