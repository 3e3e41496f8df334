"""`python docs/check_links.py site`: every link of a built site leads somewhere, and no page needs
anything from elsewhere.

Checked are the files and the anchors that links inside the site name, and that scripts, styles and
pictures are files of the site. Links to other sites are not followed.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

RESOURCES = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What one page defines (anchors), links to, and loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.resources = {"", "top"}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in RESOURCES and RESOURCES[tag] in found:
            self.resources.append(found[RESOURCES[tag]])


def problems(site: Path) -> list[str]:
    """One line per dead link, missing anchor or resource from elsewhere."""
    site = site.resolve()
    pages = {
        path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }
    found = []
    for path, page in pages.items():
        here = path.relative_to(site)
        found += [
            f"{here}: needs {target} from elsewhere"
            for target in page.resources
            if _outside(target)
        ]
        for target in [
            t
            for t in (*page.links, *page.resources)
            if not _outside(t) and not t.startswith("data:")
        ]:
            parts = urlsplit(target)
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                found.append(f"{here}: {target} is not there")
            elif file in pages and unquote(parts.fragment) not in pages[file].anchors:
                found.append(f"{here}: {target} has no such anchor")
    return found


def _outside(target: str) -> bool:
    parts = urlsplit(target)
    return parts.scheme not in {"", "data"} or bool(parts.netloc)


def main(arguments: list[str]) -> int:
    """Exit status 1 and a line each when something is wrong."""
    found = problems(Path(arguments[0]))
    print("\n".join(found) or "links: all lead somewhere", file=sys.stderr if found else sys.stdout)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
