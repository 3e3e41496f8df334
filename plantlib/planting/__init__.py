"""The method: ranking losses, learning to rank, the starts, the label decoder, planted scores."""
