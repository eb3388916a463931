"""Command line of the coverage suites; ``--help`` tells."""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.coverage.isolate import isolated
from benchmarks.coverage.report import write
from benchmarks.coverage.suites import SUITES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
PAGE = ROOT / "docs" / "coverage.md"

Results = dict[tuple[str, str], dict[str, Any]]


def read(path: Path) -> Results:
    """The newest record of every case."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.strip()]
    return {(record["suite"], record["model"]): record for record in records}


def revision() -> str:
    """The commit that fxprune is imported from, "-dirty" where its own files have changed since."""
    found = importlib.util.find_spec("fxprune")
    if found is None or found.origin is None:
        return "unknown"
    folder = str(Path(found.origin).parent)

    def git(*words: str) -> str:
        command = ["git", "-C", folder, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - fixed words

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{commit}-dirty" if git("status", "--porcelain", "--", ".") else commit


def run(suite: str, names: list[str], path: Path, done: Results, seconds: float, gigabytes: float) -> None:
    """Measure cases one after the other, adding a line to the file for each."""
    for number, name in enumerate(names, 1):
        record = {"suite": suite, "model": name, "revision": revision()} | isolated(SUITES[suite].find, name, seconds, gigabytes)
        done[suite, name] = record
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        said = record.get("error", "")[:150] if record["outcome"] != "verified" else f"{record['verified_error']:.1e}"
        print(f"[{number}/{len(names)}] {name}: {record['outcome']} {said} ({record['seconds']} s)", flush=True)


def main() -> None:
    """Run suites and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument(
        "--suite", nargs="*", choices=SUITES, default=["torchvision"], help="which suites to run (none: only write the page)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["*"], help="names of models, or globs")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="JSON lines to add to")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the page to write")
    parser.add_argument("--resume", action="store_true", help="leave out what the file already holds")
    parser.add_argument("--retry", action="store_true", help="leave out what the file says is verified")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="CPU time per model")
    parser.add_argument("--memory", type=float, default=14, metavar="GB", help="memory per model")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    done = read(given.json)
    for suite in given.suite:
        names = [n for n in SUITES[suite].names() if any(fnmatch.fnmatchcase(n, pattern) for pattern in given.only)]
        if given.resume or given.retry:
            keep = {"verified"} if given.retry else {"verified", "refused", "failed"}
            names = [n for n in names if done.get((suite, n), {}).get("outcome") not in keep]
        run(suite, names, given.json, done, given.limit, given.memory)
    write(done, given.page)


if __name__ == "__main__":
    main()
