"""Experiments: ablations, learning curves, leak audit, evidence, convergence, grids."""
