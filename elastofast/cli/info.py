"""``elastofast info``: what is installed and what is missing."""

from __future__ import annotations

import importlib
import os
import platform

from ..backend.processors import processors
from .shared import OPTIONAL, one_line, version

HELP = "show version, build, threads and packages, and what is missing and why"
EXAMPLE = ""


def add_options(option) -> None:
    """Add the options of the command, of which there are none."""


def run(options) -> int:
    """Run the command; returns the exit status."""
    print(f"elastofast      {version('elastofast') or 'not installed'}")
    print(f"python          {platform.python_version()} on {platform.platform()}")
    print(f"processors      {processors()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}")
    print("\ncore (elastofast._core)")
    try:
        build = importlib.import_module("elastofast._core").build_info()
    except ImportError as error:
        print(f"  missing: {one_line(error)}; build it with: pip install .")
    else:
        for name, value in build.items():
            value = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            print(f"  {name.replace('_', ' '):<22}{value}")
    print("\nCUDA (elastofast._cuda)")
    try:
        cuda = importlib.import_module("elastofast._cuda")
    except ImportError as error:
        print(f"  absent: {one_line(error)}; built where nvcc is on PATH, everything runs on the CPU without it")
    else:
        for name, value in cuda.build_info().items():
            print(f"  {name:<22}{value}")
        try:
            print(f"  {'devices':<22}{cuda.device_count()}")
        except RuntimeError as error:
            print(f"  {'devices':<22}none: {one_line(error)}")
    print("\npackages")
    for name in ("numpy", "scipy", "tqdm"):
        print(f"  {name:<14}{version(name) or 'MISSING: required'}")
    for name, use in OPTIONAL.items():
        print(f"  {name:<14}{version(name) or f'missing, needed for {use}: pip install {name}'}")
    return 0
