"""The site: built whole from what is committed; and its check of links, which finds what is broken."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from mgenb import claims
from mgenb.lab import record, scoreboard

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("sphinx", "myst_nb", "sphinx_book_theme", "latex2mathml"):
        pytest.importorskip(name, reason=f"{name} is missing: pip install 'mgenb[site]'")
    folder = tmp_path_factory.mktemp("built") / "site"
    made = subprocess.run([sys.executable, "docs/build.py", folder], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, f"{made.stdout}\n{made.stderr}"
    return folder


@pytest.fixture(scope="module")
def links():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import links
    finally:
        sys.path.pop(0)
    return links


QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def seen(path):
    """The words of a page, without its markup and with plain quotes."""
    words = unescape(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8"))).split()
    return " ".join(words).translate(QUOTES)


def test_every_central_claim_has_its_page_with_verdict_number_and_figure(site):
    frame = scoreboard.table(record.committed())
    central = frame[frame["role"] == "central"]
    assert len(central) == sum(claim.role == "central" for claim in claims.load()) > 20
    landing = seen(site / "index.html")
    for name, row in central.iterrows():
        page = site / "claims" / f"{name}.html"
        for text in (row["statement"].rstrip("."), row["verdict"], row["measured"], row["holds if"]):
            assert text in seen(page), name
        assert f"{name}.svg" in page.read_text(encoding="utf-8"), name
        assert f"{row['verdict']} {row['statement']}" in landing, name


def test_notebooks_are_there_with_their_outputs_and_equations(site):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{path.stem}.html").is_file()
    page = (site / "notebooks" / "02_zero_filling.html").read_text(encoding="utf-8")
    assert '<math alttext="C = \\mathrm{DCT}(W)"' in page
    assert "mge.fig5.decays: " in page
    assert page.count("<img") > 3


def test_reference_has_the_public_names(site):
    page = (site / "api" / "mgenb.mge.html").read_text(encoding="utf-8")
    assert 'id="mgenb.mge.frequency.select"' in page
    assert "_private" not in page


def test_nothing_was_executed_or_left_beside_the_sources(site):
    assert not list(site.rglob("*.ipynb")), "the site holds pages, not notebooks"
    assert not list((ROOT / "docs").rglob("*.doctree"))


BROKEN = {
    '<a href="gone.html">': "no file gone.html",
    '<a href="#gone">': "no anchor #gone",
    '<a href="other.html#gone">': "no anchor other.html#gone",
    '<img src="gone.png" alt="a figure">': "no file gone.png",
    '<img src="data:image/png;base64,AAAA">': "a picture without text",
    '<script src="https://cdn.example.org/x.js">': "loads https://cdn.example.org/x.js",
    '<link rel="stylesheet" href="//fonts.example.org/css">': "loads //fonts.example.org/css",
}


@pytest.mark.parametrize("fragment", BROKEN)
def test_what_is_broken_is_named(tmp_path, links, fragment):
    (tmp_path / "other.html").write_text('<h1 id="here">here</h1>')
    (tmp_path / "page.html").write_text(f"<p>{fragment}</p>")
    (fault,) = links.faults(tmp_path)
    assert fault.startswith("page.html: ")
    assert BROKEN[fragment] in fault


def test_fonts_from_elsewhere_are_named(tmp_path, links):
    (tmp_path / "own.css").write_text("@import url('https://fonts.example.org/a.css'); a {background: url(here.png)}")
    assert len(links.faults(tmp_path)) == 1


def test_what_is_whole_has_no_faults(tmp_path, links):
    (tmp_path / "a b.html").write_text('<h1 id="here">here</h1><a href="https://example.org/">elsewhere</a>')
    (tmp_path / "page.html").write_text('<a href="a%20b.html#here">there</a> <img src="data:x" alt="a dot">')
    assert links.faults(tmp_path) == []
