"""Every way in which random networks fail, with the smallest network for each: ``python -m tests.property.census 2000``.

Hypothesis stops at the first few failures and shrinks them; while a compiler is being built it is quicker to see all kinds at
once. Failures are told apart by type and by the words of their message.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings

import fxprune
from tests.property.compiling import TOLERANCE, compiled, run
from tests.property.strategies import Case, cases
from tests.reference.compare import backward, relative_error
from tests.reference.zeroed import zeroed


def check(case: Case, verify: bool) -> str:
    """Compile one case and hold it against its oracle; what became of it."""
    c = compiled(case, verify=verify)
    if c is None:
        return "nothing to prune"
    if case.program.mixes:
        fxprune.verify(c.model, c.slim, c.inputs)
    else:
        error = relative_error(run(c.slim, c.inputs), zeroed(c.model, c.plan, c.inputs))
        assert error <= TOLERANCE, f"output differs from the zeroed network (error above {TOLERANCE})"
    backward(c.slim, *c.inputs)
    return "nothing went" if c.plan.empty else "pruned"


def kind_of(error: Exception) -> str:
    """Type, place and words of an error, names and numbers left out."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = re.sub(r"'[^']*'|\d+(\.\d+)?(e-?\d+)?|\([^)]*\)|\[[^\]]*\]", "_", str(error).partition("\n")[0])
    return f"{type(error).__name__} at {place.filename.rpartition('/')[2]}:{place.name}: {words[:160]}"


def main() -> None:
    """Draw, check, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", type=int, nargs="?", default=500)
    parser.add_argument("--mixing", action="store_true")
    parser.add_argument("--setitem", action="store_true")
    parser.add_argument("--opaque", action="store_true")
    parser.add_argument("--verify", action="store_true", help="let slim verify itself too")
    parser.add_argument("--show", type=int, default=20, help="number of failures to print in full")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    smallest: dict[str, tuple[int, Case, Exception]] = {}

    @settings(
        max_examples=asked.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(mixing=asked.mixing, setitem=asked.setitem, opaque=asked.opaque))
    def draw(case: Case) -> None:
        try:
            outcomes[check(case, asked.verify)] += 1
        except Exception as error:  # noqa: BLE001  # failures are what is collected here
            kind = kind_of(error)
            outcomes[kind] += 1
            size = len(repr(case))
            if kind not in smallest or size < smallest[kind][0]:
                smallest[kind] = (size, case, error)

    begun = time.perf_counter()
    draw()
    seconds = time.perf_counter() - begun
    report: list[Any] = [f"{sum(outcomes.values())} networks, {sum(outcomes.values()) / seconds:.1f} a second"]
    report += [f"{count:6d}  {kind}" for kind, count in outcomes.most_common()]
    for kind, (_, case, error) in sorted(smallest.items(), key=lambda item: item[1][0])[: asked.show]:
        report += ["", f"---- {outcomes[kind]} x {kind}", repr(case), str(error)[:1500]]
    sys.stdout.write("\n".join(map(str, report)) + "\n")


if __name__ == "__main__":
    main()
