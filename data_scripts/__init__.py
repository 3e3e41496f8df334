"""Scripts that turn a public data set into a corpus folder, by `build(out, source=None, ...)` or
from a shell.
"""
