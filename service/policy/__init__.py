"""What an operator may change while the service runs: the document, its stores, the version in force."""
