"""The offline part: the Gatekeeper loss, the tuning job, the bundles; and the inference that both halves share."""
