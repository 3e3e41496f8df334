"""Tells nbval which outputs not to compare: pictures, HTML, and all of stderr (bars, warnings)."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "stderr", "image/svg+xml", "image/png")
