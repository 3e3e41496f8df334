"""What the training rows teach: mutual information gain, label descriptions, the same on Dask."""
