"""The landing page and a page for each central claim, from the registry and the committed records alone."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from mgenb import claims
from mgenb.claims import Claim, Verdict
from mgenb.lab import catalog, figures, scoreboard, specification
from mgenb.lab.record import Record

SCOREBOARDS = "%%SCOREBOARDS%%"  # in index.md: where the papers' tables stand
NOTEBOOKS = {notebook.stem: notebook for notebook in catalog.notebooks()}

Row = Mapping[str, str]  # of `scoreboard.table`


def write(source: Path, records: Sequence[Record]) -> None:
    """Fill in `index.md` of the folder `source`, and write `claims/`, a page with its figure for each central claim."""
    frame, best = scoreboard.table(records), scoreboard.best_verdicts(records)
    central = [claim for claim in claims.load() if claim.role == "central"]
    (source / "claims").mkdir()
    with mpl.rc_context({**figures.STYLE, "svg.hashsalt": "mgenb"}):
        boards = [_scoreboard(source, records, frame, paper) for paper in scoreboard.PAPERS]
        for claim in central:
            lines = _page(source / "claims", claim, frame, best.get(claim.id), records)
            (source / "claims" / f"{claim.id}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    landing = source / "index.md"
    text = landing.read_text(encoding="utf-8").replace(SCOREBOARDS, "\n".join(boards))
    landing.write_text(text, encoding="utf-8")
    (source / "claims" / "index.md").write_text("\n".join(_overview(central)) + "\n", encoding="utf-8")


def _scoreboard(source: Path, records: Sequence[Record], frame: pd.DataFrame, paper: str) -> str:
    """Return a paper's part of the landing page: how many claims have which verdict, each of them, the forest plot."""
    name = scoreboard.PAPERS[paper]
    shown = frame[(frame["paper"] == paper) & (frame["role"] == "central")].sort_values("notebook", kind="stable")
    rows = [
        (_badge(row["verdict"]), f"[{_text(row['statement'])}](claims/{claim}.md)", *_numbers(row))
        for claim, row in shown.to_dict("index").items()
    ]
    alt = (
        f"Forest plot of the central claims of {name}, in margins inside what each claim allows, as in the table above"
    )
    figure = _drawn(scoreboard.forest(records, paper), source / f"forest_{paper}.svg", alt)
    heads = ("verdict", "claim", "paper", "holds if", "ours", "scale")
    return "\n".join(
        [f"## {name}", "", scoreboard.sentences(frame, paper)[0], "", *_table(heads, rows), "", figure, ""]
    )


def _numbers(row: Row) -> tuple[str, str, str, str]:
    return row["paper value"], _text(row["holds if"]), _text(row["measured"] or row["why"]), _code(row["scale"])


def _overview(central: Sequence[Claim]) -> Iterator[str]:
    """Yield the lines of the list of claim pages, by paper."""
    yield "# Central claims"
    for paper, name in scoreboard.PAPERS.items():
        yield f"\n## {name}\n"
        yield from (f"- [{_text(c.statement)}]({c.id}.md) `{c.id}`" for c in central if c.paper == paper)
    yield from ("\n```{toctree}", ":hidden:", "")
    yield from (f"{_label(claim)} <{claim.id}>" for claim in central)
    yield "```"


def _label(claim: Claim) -> str:
    """Return a claim in a few words, as "MGE Fig. 5: decays"; "MGE: few shot" of a sentence."""
    paper, place, what = claim.id.split(".", 2)
    place = re.sub(r"(fig|table)(\d+)", lambda found: f" {found[1].capitalize()}. {found[2]}", place)
    place = place.replace("Table.", "Table").replace("text", "")
    return f"{scoreboard.PAPERS[paper]}{place}: {what.replace('_', ' ')}"


def _page(
    folder: Path, claim: Claim, frame: pd.DataFrame, verdict: Verdict | None, records: Sequence[Record]
) -> Iterator[str]:
    """Yield the lines of a claim's page; its figure is written beside it."""
    row = frame.loc[claim.id].to_dict()
    yield from (f"# {_text(claim.statement.rstrip('.'))}", "", f"{_badge(row['verdict'])} `{claim.id}`", "")
    yield from ("```{list-table}", ":stub-columns: 1", "")
    for name, what in _facts(claim, row, verdict):
        yield f"* - {name}\n  - {what}"
    yield from ("```", "", _text(claim.notes), "", "## What was measured under each reading", "")
    if verdict and verdict.readings:
        yield from _readings(folder, claim, verdict)
    else:
        yield _text(row["why"])
    yield from ("", "## What the readings are", "", *_choices(claim), "")
    yield from ("## Controls of the same notebook", "", *_controls(frame, claim.notebook), "")
    yield from ("## All records that judge it", "", *_records(claim, records))


def _facts(claim: Claim, row: Row, verdict: Verdict | None) -> Iterator[tuple[str, str]]:
    stem = claim.notebook
    yield "in the paper", f"{scoreboard.PAPERS[claim.paper]}, {_text(claim.where)}"
    yield "the paper's number", row["paper value"] or "none is printed"
    yield "holds if", f"{_text(row['holds if'])} {_text(claim.unit)} ({claim.kind})"
    yield "ours", _text(row["measured"]) or "nothing"
    if verdict and verdict.replicates:
        yield "from", f"{verdict.replicates}; {_text(row['networks'])}"
    yield "core readings", row["readings"] or "one"
    yield "scale", _code(row["scale"])
    yield "why", _text(row["why"])
    yield "notebook", f"[{stem[:2]} · {NOTEBOOKS[stem].title}](../notebooks/{stem}.ipynb#verdicts)"


def _readings(folder: Path, claim: Claim, verdict: Verdict) -> Iterator[str]:
    """Yield the specification curve and, for who cannot see it, its numbers."""
    alt = f"Specification curve of {claim.id}: estimates of all readings with their intervals, as in the table below"
    yield _drawn(specification.curve(verdict), folder / f"{claim.id}.svg", alt)
    yield "\nSorted by estimate; shaded is where the claim holds. Below, which choices each reading is made of.\n"
    rows = []
    for reading in sorted(verdict.readings, key=lambda reading: reading.estimate):
        low, high = ("?" if end is None else f"{end:.2f}" for end in (reading.low, reading.high))
        measured = f"{reading.estimate:.2f} [{low}, {high}]", str(reading.n)
        rows.append((_text(reading.name), "core" if reading.core else "open", *measured, _badge(reading.verdict)))
    yield from _table(("reading", "kind", _text(claim.unit), "n", "says"), rows)


def _choices(claim: Claim) -> Iterator[str]:
    """Yield each level of each point that the readings of a claim are made of."""
    if claim.readings == (claims.AS_STATED,):
        yield "The paper leaves nothing open here: there is one reading."
        return
    known = claims.points(claim.paper)
    taken = dict.fromkeys(choice for reading in claim.readings for choice in reading.choices.items())
    rows = [(known[point], level) for point, level in sorted(taken, key=lambda choice: list(known).index(choice[0]))]
    about = [(_text(point.what), level.replace("_", " "), point.levels[level]) for point, level in rows]
    yield from _table(
        ("what is left open", "level", "says", "stands as"),
        ((what, level, _text(said["says"]), said["stands"]) for what, level, said in about),
    )


def _controls(frame: pd.DataFrame, notebook: str) -> Iterator[str]:
    chosen = frame[(frame["notebook"] == notebook) & (frame["role"] == "control")].to_dict("records")
    if not chosen:
        yield "None is judged."
        return
    rows = ((_badge(row["verdict"]), _text(row["statement"]), *_numbers(row)[1:]) for row in chosen)
    yield from _table(("verdict", "control", "holds if", "ours", "scale"), rows)


def _records(claim: Claim, records: Sequence[Record]) -> Iterator[str]:
    rows = []
    for made in records:
        for judged in (Verdict.from_json(row) for row in made.claims if row["id"] == claim.id):
            name = f"{made.profile}/{made.stem}"
            note = f"stale: {made.stale}" if made.stale else judged.reason
            files = f"[record](../figures/{name}.json)"
            if (catalog.project_root() / "figures" / f"{name}.csv").is_file():
                files += f", [rows](../figures/{name}.csv)"
            rows.append((made.profile, _badge(judged.verdict), _text(judged.measured), _text(note), files))
    yield from _table(("profile", "verdict", "ours", "why", "files"), rows) if rows else ["None."]


def _drawn(figure: Figure, path: Path, alt: str) -> str:
    """Write the figure and return the line of Markdown that shows it."""
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    plt.close(figure)
    return f"![{alt}]({path.name})"


def _badge(verdict: str) -> str:
    return f"[{verdict}]{{.verdict .{verdict.replace(' ', '-')}}}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _text(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
