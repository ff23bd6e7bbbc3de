"""An LLM labels texts: what is asked, what it costs, what is kept of its answers."""
