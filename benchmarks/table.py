"""The table of a run for the documents: ``python benchmarks/table.py results.json``.

Makes one from what ``pytest benchmarks --benchmark-only --benchmark-json=results.json`` wrote. A line for each task:
the least time of ours, that of the fastest other package, and their ratio; unknowns per second, and the share of the
bandwidth of memory that this run measured, where the bytes that have to be moved are known.
"""

import argparse
import json
from pathlib import Path

from side_by_side import print_table

OURS = ("elastofast", "in one call", "exact")  # what our side of a group is called; all of a group without peers


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    record = json.loads(options.results.read_text())
    machine, own = record["machine_info"], record["elastofast"]
    threads = machine["elastofast"]["threads"]
    print(f"{machine['cpu'].get('brand_raw', machine['processor'])}, {threads} thread{'s' * (threads > 1)}, ", end="")
    print(f"{own['triad_bytes_per_second'] / 1e9:.1f} GB/s (triad). ", end="")
    print(", ".join(f"{name} {version}" for name, version in own["versions"].items()) + ".")
    groups = {}
    for benchmark in record["benchmarks"]:
        groups.setdefault(benchmark["group"], []).append(benchmark)
    heads = ["task", "elastofast", "million dofs/s", "of the triad", "fastest other", "its time", "ratio"]
    print_table(heads, [row for group in groups.items() for row in rows(*group)])


def rows(group, members):
    """A line for each of our benchmarks in a group."""
    named = {_method(member["params"]): member for member in members}
    ours = {name: member for name, member in named.items() if name in (*OURS, "")} or named
    others = {name: member for name, member in named.items() if name not in ours and name != "filling the values"}
    best = min(others, key=lambda name: others[name]["stats"]["min"]) if others else None
    for name, member in ours.items():
        seconds, more = member["stats"]["min"], member["extra_info"]
        share = f"{more['share_of_triad']:.2f}" if "share_of_triad" in more else "-"
        task = group if len(ours) == 1 else f"{group}, {name or _rest(member['params'])}"
        line = [task, shown(seconds), f"{more['dofs_per_second'] / 1e6:.3g}", share]
        if best is None:
            yield [*line, "-", "-", "-"]
        else:
            other = others[best]["stats"]["min"]
            yield [*line, best, shown(other), f"{other / seconds:.3g}"]


def _method(params):
    return (params or {}).get("method", "") or _rest(params)


def _rest(params):
    return f"{params['threads']} threads" if params and "threads" in params else ""


def shown(seconds):
    """A time with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


if __name__ == "__main__":
    main()
