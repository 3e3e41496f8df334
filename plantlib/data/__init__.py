"""Text and labels: reading tables, storing corpora, drawing splits, tokenising, privacy checks."""
