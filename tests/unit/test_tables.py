"""Tables of notebooks: nothing is cut, text stands left and wraps, numbers stand right."""

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from mgenb.lab import tables

STATEMENT = "Generated models are as accurate as trained ones, " * 4 + "which is the end."
FRAME = pd.DataFrame(
    {
        "statement": [STATEMENT, "short"],
        "points": [1.5, -12.25],
        "measured": ["2.0 [1.0, 3.0]", "-1.0 [-2.0, inf]"],
        "n": [3, 10],
    },
    index=pd.Index(["mge.a.very.long.claim.identifier", "b"], name="claim"),
)


def test_text_wraps_and_holds_every_word():
    shown = tables.text(FRAME)
    assert "..." not in shown
    assert " ".join(shown.split()).count("accurate") == STATEMENT.count("accurate")
    assert max(map(len, shown.splitlines())) < 120
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_text_stands_left_and_numbers_right():
    first, *_, last = tables.text(FRAME).splitlines()
    for name, cell in (("points", "-12.25"), ("measured", "-1.0 [-2.0, inf]"), ("n", "10")):
        assert first.rindex(name) + len(name) == last.index(cell) + len(cell)
    assert first.index("claim") == last.index("b") == 0
    assert first.index("statement") == last.index("short")


def test_html_holds_the_whole_text_and_aligns_by_column():
    shown = tables.html(FRAME)
    assert STATEMENT in shown
    assert ":nth-last-child(4)" in shown  # statement, counted from the end
    assert ":nth-last-child(1)" not in shown  # n
    assert tables.html(FRAME.copy()) == shown


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": []}),
        pd.DataFrame([[1, 2]]),
        FRAME.reset_index().set_index(["claim", "n"]),
        FRAME[["points", "n"]].unstack().to_frame(),
        FRAME.reset_index().pivot(index="claim", columns=["statement", "n"], values="points"),
    ],
    ids=["empty", "nameless", "two levels", "series", "two levels of columns"],
)
def test_any_frame_can_be_shown(frame):
    assert len(tables.text(frame).splitlines()) > len(frame)
    assert "<table" in tables.html(frame)


def test_a_kernel_shows_whole_tables_once_it_is_told():
    cells = ["import pandas as pd\nfrom mgenb.lab import tables\ntables.use_tables()"]
    cells.append(f"pd.DataFrame({{'statement': [{STATEMENT!r}]}})")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(nb, kernel_name="python3").execute()
    data = nb.cells[1].outputs[0].data
    assert STATEMENT in data["text/html"]
    assert "which is the end." in " ".join(data["text/plain"].split())
    assert "..." not in data["text/plain"]
