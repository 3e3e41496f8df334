"""Text and labels: tables in, corpora stored, splits drawn, texts tokenised, credentialed text kept
in.
"""
