"""Metrics of rankings per document, streaming top-k, buckets by label frequency, paired intervals."""
