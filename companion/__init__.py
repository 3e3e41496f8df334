"""The experiments around plantlib: studies, peers, reports, and the jobs that reproduce them."""
