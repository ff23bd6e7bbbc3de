"""One file per protocol that the service speaks."""
