"""The online part: the edge service, the large-model service and the `gatekeeper` command."""
