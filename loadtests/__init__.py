"""Load tests and benchmarks: HTTP only, nothing of the application is imported."""
