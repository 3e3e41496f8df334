"""What nbval leaves out when it compares stored outputs: pictures, HTML and everything on stderr
(bars, warnings).
"""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "stderr", "image/svg+xml", "image/png")
