"""``elastofast info``: what is installed and what is missing."""

from __future__ import annotations

import importlib
import json
import os
import platform
from typing import Any

from ..backend.processors import processors
from .shared import OPTIONAL, one_line, version
from .verify import checked

HELP = "show version, build, threads and packages, and what is missing and why"
EXAMPLE = "--json --verify > report.json"
REQUIRED = ("numpy", "scipy", "tqdm")


def add_options(option) -> None:
    """Add the options of the command."""
    option("--json", action="store_true", help="write one JSON object, for bug reports")
    option("--verify", action="store_true", help="also make the checks of elastofast verify")


def run(options) -> int:
    """Run the command; returns the exit status."""
    found = collected()
    if options.json:
        if options.verify:
            found["checks"] = checked(show=False)
        print(json.dumps(found, indent=1))
        return 0
    print(f"elastofast      {found['elastofast'] or 'not installed'}")
    print(f"python          {found['python']} on {found['platform']}")
    print(f"processors      {found['processors']}, OMP_NUM_THREADS {found['OMP_NUM_THREADS'] or 'not set'}")
    print("\ncore (elastofast._core)")
    core = found["core"]
    if "missing" in core:
        print(f"  missing: {core['missing']}; build it with: pip install .")
    else:
        for name, value in core.items():
            value = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            print(f"  {name.replace('_', ' '):<22}{value}")
    print("\nCUDA (elastofast._cuda)")
    cuda = found["cuda"]
    if "missing" in cuda:
        print(f"  absent: {cuda['missing']}; built where nvcc is on PATH, everything runs on the CPU without it")
    else:
        for name, value in cuda.items():
            print(f"  {name:<22}{value}")
    print("\npackages")
    for name in REQUIRED:
        print(f"  {name:<14}{found['packages'][name] or 'MISSING: required'}")
    for name, use in OPTIONAL.items():
        print(f"  {name:<14}{found['packages'][name] or f'missing, needed for {use}: pip install {name}'}")
    if options.verify:
        print("\nchecks")
        checked(show=True)
    return 0


def collected() -> dict[str, Any]:
    """Versions and build as plain values; a compiled module that is not there has its reason as ``missing``."""
    try:
        core = dict(importlib.import_module("elastofast._core").build_info())
    except ImportError as error:
        core = {"missing": one_line(error)}
    try:
        module = importlib.import_module("elastofast._cuda")
    except ImportError as error:
        cuda = {"missing": one_line(error)}
    else:
        cuda = dict(module.build_info())
        try:
            cuda["devices"] = module.device_count()
        except RuntimeError as error:
            cuda["devices"] = f"none: {one_line(error)}"
    return {
        "elastofast": version("elastofast"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": processors(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "core": core,
        "cuda": cuda,
        "packages": {name: version(name) for name in (*REQUIRED, *OPTIONAL)},
    }
