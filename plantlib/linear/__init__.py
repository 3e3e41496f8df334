"""The linear score over words: ridge regressions and association tables, stacked out of fold."""
