"""One stretch of time on a GPU, used well: the tests, parts of the `paper` profile (`paper.py`), then speeds.

Needs Python with torch and torchvision, this repository, and what the README beside it says of wheels and data. Each
part's rows are written as soon as it ends; a part that hangs is stopped, named, and the next one goes on.
"""

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START = 25  # seconds in which Python, torch and CUDA start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder for rows and logs")
    parser.add_argument("--data", type=Path, help="folder with data sets, as MGENB_DATA")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what Python lacks there")
    parser.add_argument("--tests", type=float, default=150, help="seconds for the tests at most; 0: none")
    parser.add_argument("--only", help="speeds to measure, separated by commas; all that have no rows yet otherwise")
    parser.add_argument("--no-paper", action="store_true", help="leave out the parts of the paper profile")
    given = parser.parse_args()
    ends = time.monotonic() + given.budget
    given.out.mkdir(parents=True, exist_ok=True)
    environment = prepared(given.wheels, given.data)
    asked = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    if subprocess.run(asked, env=environment, check=False).returncode:
        sys.exit("no GPU here: PyTorch is missing or sees no CUDA device; `mgenb doctor` says more")
    failed = run_tests(given.out, environment, given.tests) if given.tests else 0
    if not given.no_paper:
        run_paper(given.out, environment, ends)
    run_parts(given.out, environment, ends, given.only)
    return failed


def prepared(wheels: Path | None, data: Path | None) -> dict[str, str]:
    """Return the environment in which mgenb and the wheels can be imported."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    if wheels is not None:
        site = tempfile.mkdtemp(prefix="site-")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", site, *map(str, wheels.glob("*.whl"))], check=True)
        environment["PYTHONPATH"] += os.pathsep + site
    if data is not None:
        environment["MGENB_DATA"] = str(data.resolve())
    return environment


def run_tests(out: Path, environment: dict[str, str], limit: float) -> int:
    """Run tests/gpu within `limit` seconds; return pytest's code, 124 where the time ended."""
    files = [f"tests/gpu/test_gpu_{name}.py" for name in ("training", "methods", "populations")]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "--durations=8"]
    with (out / "tests.log").open("w") as log:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    print("\n".join((out / "tests.log").read_text().splitlines()[-40:]), flush=True)
    print(f"tests ended with {code}", flush=True)
    return code


def run_paper(out: Path, environment: dict[str, str], ends: float) -> None:
    """Measure parts of the paper profile until the time ends; those that are done are in paper.zip."""
    left = ends - time.monotonic()
    command = [sys.executable, str(ROOT / "tests/gpu/paper.py"), "--out", str(out), "--seconds", str(left)]
    try:
        subprocess.run(command, cwd=ROOT, env=environment, timeout=max(1.0, left), check=False)
    except subprocess.TimeoutExpired:
        print("paper.py: stopped, its time is spent", flush=True)


def run_parts(out: Path, environment: dict[str, str], ends: float, only: str | None) -> None:
    """Run parts in a process of their own until the time ends; one that takes three times its estimate is stopped."""
    hung: list[str] = []
    while ends - time.monotonic() > START:
        command = [sys.executable, str(ROOT / "tests/gpu/parts.py"), "--out", str(out), "--skip", ",".join(hung)]
        command += ["--seconds", str(ends - time.monotonic())] + (["--only", only] if only else [])
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        current = watched(process, out, ends)
        if current is None:
            return
        hung.append(current)
        print(f"{current}: stopped, or ended without rows", flush=True)


def watched(process: "subprocess.Popen[str]", out: Path, ends: float) -> str | None:
    """Pass on what the process prints; return the part during which it ended or was stopped, None when all was well."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    current, limit = None, time.monotonic() + 4 * START
    with (out / "parts.log").open("a") as log:
        while True:
            try:
                line = lines.get(timeout=max(0.0, min(limit, ends) - time.monotonic()))
            except queue.Empty:
                process.kill()
                return current or "nothing"
            if line is None:
                return current if process.wait() else None
            log.write(line)
            print(line, end="", flush=True)
            if line.startswith("part "):  # part NAME, SECONDS s
                current, seconds = line.split()[1].rstrip(","), float(line.split()[2])
                limit = time.monotonic() + 3 * seconds + START


if __name__ == "__main__":
    sys.exit(main())
