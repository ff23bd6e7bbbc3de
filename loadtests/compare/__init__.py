"""The edge beside other servers and gateways, under wrk."""
