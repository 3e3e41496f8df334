"""One run: inputs, artefacts, fine-tuning, choosing on dev, reading test once, the record."""
