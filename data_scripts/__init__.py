"""Scripts that build corpus folders: `build(out, source=None, ...)`, or from a shell."""
