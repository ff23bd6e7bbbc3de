"""What Locust's users do, by shape and phase, and what was found."""
