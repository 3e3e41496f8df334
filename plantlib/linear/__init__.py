"""The linear score over words: one-vs-rest SVMs and association tables, stacked out of fold."""
