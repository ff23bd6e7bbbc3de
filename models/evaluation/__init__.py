"""What a bundle is worth on test data, offline and as a service, and the report."""
