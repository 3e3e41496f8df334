"""Training on candidate lists, for label spaces too large to score whole."""
