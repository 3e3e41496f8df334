"""Other systems on the same documents, split and label space, for comparison."""
