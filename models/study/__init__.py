"""Many recipes side by side: `gatekeeper compare`, and what training costs."""
