"""Tells nbval which outputs not to compare: pictures, HTML, and all of stderr (bars, warnings).

What nbval leaves out altogether, cells tagged `nbval-ignore-output`, is compared by its shape and
wording, see `stored_outputs.py`.
"""

import pytest
from stored_outputs import difference


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "stderr", "image/svg+xml", "image/png")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    if hasattr(item, "test_outputs") and not item.options["check"]:
        stale = difference(item.cell.outputs, item.test_outputs or [])
        assert not stale, f"run python notebooks/refresh.py {item.path.name}: {stale}"
    return result
