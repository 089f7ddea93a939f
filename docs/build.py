"""Build the site: `python docs/build.py [FOLDER]`, without FOLDER into build/site. No notebook is executed.

Writes a folder of sources with the paths of the repository, so that links between documents hold in both places, runs
Sphinx over it, in which every warning is an error, and reads what came out: no link, picture or anchor may lead
nowhere, and nothing may be loaded from another machine.
"""

import json
import pkgutil
import re
import shutil
import sys
from pathlib import Path

import links
import pages
from sphinx.cmd.build import build_main

import mgenb
from mgenb.lab import record

HERE = Path(__file__).parent
ROOT = HERE.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "VERDICTS.md", "tests/gpu/README.md")
LINK = re.compile(r"\]\(([^)#:]+)[^):]*\)")  # to a file of the repository
HEADING = re.compile(r"^#+ (.*)", re.MULTILINE)
FIGURE = re.compile(r'figure\(\s*"(\w+)"')
DEFINED = re.compile(r"^(?:def |(?=[A-Z_]+ = ))(\w+)", re.MULTILINE)
TO_NOTEBOOK = re.compile(r'(href=\\"[\w/]+)\.ipynb(\\")')  # in tables, which Sphinx does not read
LONG = 4  # lines of code that are folded
APART = ("mgenb.cli",)  # told by the guide


def main(target: Path) -> int:
    """Build into the folder `target`; return an exit status."""
    source = target.with_name(f"{target.name}-source")
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    write(source)
    options = ["-q", "-W", "--keep-going", "-n", "-c", str(HERE), "-d", str(source / ".trees")]
    status = build_main([*options, str(source), str(target)])
    faults = links.faults(target)
    print(*faults, f"{target}: {len(list(target.rglob('*.html')))} pages, {len(faults)} faults in links", sep="\n")
    return status or bool(faults)


def write(source: Path) -> None:
    """Write all sources into the new folder `source`."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for name in (*DOCUMENTS, *(str(path.relative_to(ROOT)) for path in notebooks)):
        text = (ROOT / name).read_text(encoding="utf-8")
        put(source / name, read_only(text) if name.endswith(".ipynb") else text)
        copy_linked(source, name, text)
    for path in (ROOT / "figures").glob("*/*"):
        if path.suffix in (".csv", ".json") and not path.name.endswith(".parts.json"):
            put(source / path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    put(source / "index.md", (HERE / "index.md").read_text(encoding="utf-8"))
    pages.write(source, record.committed())
    write_reference(source / "api")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy_linked(source: Path, name: str, text: str) -> None:
    """Copy the files of the repository that a document links to or shows, except other documents."""
    for link in LINK.findall(text):
        path = (ROOT / name).parent / link
        if path.is_file() and path.suffix not in (".md", ".ipynb"):
            copy = source / Path(name).parent / link
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def read_only(text: str) -> str:
    """Return a notebook for who reads: longer cells of code folded (the experiment is not), figures with a text."""
    notebook = json.loads(TO_NOTEBOOK.sub(r"\1.html\2", text))
    heading = ""
    for cell in notebook["cells"]:
        content, about = "".join(cell["source"]), cell["metadata"]
        if cell["cell_type"] == "markdown":
            heading = [heading, *HEADING.findall(content)][-1]
            continue
        tags = about.setdefault("tags", [])
        if "experiment" not in tags and content.count("\n") >= LONG:
            tags.append("hide-input")
        name = FIGURE.search(content)
        about["mystnb"] = {
            "image": {"alt": f"{heading}: {name[1].replace('_', ' ')}" if name else heading},
            "code_prompt_show": f"Code {', '.join(DEFINED.findall(content))}",
            "code_prompt_hide": "Fold the code",
        }
    return json.dumps(notebook)


def write_reference(folder: Path) -> None:
    """Write a page for each package with what its public modules say of themselves, and for the modules beside them."""
    packages: dict[str, list[str]] = {"mgenb": []}
    for module in pkgutil.walk_packages(mgenb.__path__, "mgenb."):
        if not module.name.startswith(APART):
            parent = module.name.rpartition(".")[0]
            packages.setdefault(module.name if module.ispkg else parent, []).append(module.name)
    for package, modules in packages.items():
        lines = [f"# {package}", ""]
        for name in modules:
            lines += [] if name == package else [f"## {name}", ""]
            lines += ["```{eval-rst}", f".. automodule:: {name}", "```", ""]
        put(folder / f"{package}.md", "\n".join(lines))
    listed = "\n".join(packages)
    put(folder / "index.md", f"# Reference\n\nWhat the package's docstrings say.\n\n```{{toctree}}\n{listed}\n```\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"))
