"""Models that write text: prompts to tokens, greedy answers, and what their tokens say about how sure the model is."""
