"""``elastofast verify``: whether this build computes correctly on this machine."""

from __future__ import annotations

import dataclasses
import json
import time

from .shared import FAILED

HELP = (
    "check this build on this machine against what is known without it: patch test, order of convergence, adjoints, "
    "gradient, data term, statistics, the critic, and the GPU if there is one; exit status 1 if a check fails"
)
EXAMPLE = "--json > verify.json"


def add_options(option) -> None:
    """Add the options of the command."""
    option("--json", action="store_true", help="write one JSON object with all figures, for bug reports")


def run(options) -> int:
    """Run the command; returns the exit status."""
    begun = time.perf_counter()
    rows = checked(show=not options.json)
    failed = [row for row in rows if not row["passed"]]
    if options.json:
        print(json.dumps({"checks": rows, "passed": not failed}, indent=1))
    else:
        skipped = sum(row["skipped"] for row in rows)
        print(
            f"\n{len(rows) - len(failed) - skipped} checks passed, {skipped} skipped, {len(failed)} failed "
            f"in {time.perf_counter() - begun:.1f} s"
        )
        if failed:
            print("do not rely on this build; send the output of: elastofast info --json --verify")
    return FAILED if failed else 0


def checked(show: bool) -> list[dict]:
    """All checks as plain values; each is printed in one line when it is done if ``show``."""
    from ..verification import verify

    rows = []
    for check in verify():
        rows.append({**dataclasses.asdict(check), "passed": check.passed})
        if show:
            word = "skipped" if check.skipped else "passed" if check.passed else "FAILED"
            figure = "" if check.figure is None else f"{check.figure:.3g} (limit {check.limit:g})"
            print(f"{word:<8}{check.name}: {figure or check.note}", flush=True)
    return rows
