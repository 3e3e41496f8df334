"""The model people keep: it predicts, explains, saves and loads."""
