"""What the `gatekeeper` command does online."""
