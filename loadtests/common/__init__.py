"""What every load test needs: servers, clients, sentences, options."""
