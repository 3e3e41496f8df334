"""The teacher: which tokens speak for which labels, from training rows and label texts."""
