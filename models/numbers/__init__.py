"""What a cascade answered, and every number drawn from it. No torch in here."""
