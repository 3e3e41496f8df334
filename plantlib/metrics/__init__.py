"""Metrics per document, exact top-k of score blocks, label frequency buckets, paired tests."""
