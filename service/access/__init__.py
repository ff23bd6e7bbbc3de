"""Who may, and how much: API keys and their budgets."""
