"""What of a built site leads nowhere, or to another machine: read from its HTML and CSS alone."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
NOT_LOADED = ("canonical", "search", "next", "prev", "index", "genindex", "license", "author")  # links by their rel
IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?(https?:|//)[^)\"';]*")


class Page(HTMLParser):
    """The links, loads and anchors of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: list[tuple[str, bool]] = []  # where to, and whether it is loaded with the page
        self.without_text: list[str] = []  # pictures
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append((given["href"], False))
        if (to := given.get(LOADED.get(tag, ""))) and given.get("rel") not in NOT_LOADED:
            self.links.append((to, True))
        if tag == "img" and not given.get("alt"):
            self.without_text.append(given.get("src", "")[:80])


def faults(site: Path) -> list[str]:
    """Return one line for each fault of the pages in the folder `site`."""
    read = cache(Page)
    found = (path for path in site.rglob("*.html") if "_static" not in path.parts)  # there lie the theme's templates
    lines = [line for path in sorted(found) for line in _of_page(path, site, read)]
    for path in sorted(site.rglob("*.css")):
        loads = IN_CSS.finditer(path.read_text(encoding="utf-8"))
        lines += [f"{path.relative_to(site)}: loads {match[0]}" for match in loads]
    return lines


def _of_page(path: Path, site: Path, read: Callable[[Path], Page]) -> Iterator[str]:
    page = read(path)
    name = path.relative_to(site)
    yield from (f"{name}: a picture without text, {picture}" for picture in page.without_text)
    for to, loaded in page.links:
        parts = urlsplit(to)
        if parts.scheme or parts.netloc:
            if loaded and parts.scheme != "data":
                yield f"{name}: loads {to}"
            continue
        target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
        if not target.is_file():
            yield f"{name}: no file {to}"
        elif target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors:
            yield f"{name}: no anchor {to}"
