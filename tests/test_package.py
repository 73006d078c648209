import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

import elastofast
from elastofast import _core

HEAVY = {"torch", "numba", "cupy", "matplotlib", "h5py", "meshio", "pyamg", "skimage"}


def run(code, **environment):
    """Output of a new interpreter, which must not take the sources in the current folder for the package."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "work",
    [
        "",
        # the core alone runs without any optional package
        "grid = elastofast.Grid((9, 9), (1e-3, 1e-3)); "
        "form = elastofast.ElasticForm(grid, elastofast.PlaneStress(0.3)); "
        "elastofast.solve_forward(form, numpy.ones((9, 9)), elastofast.compression(grid, pressure=1.0))",
    ],
    ids=["import", "forward solve"],
)
def test_import_and_core_need_no_optional_package(work):
    code = f"import json, sys, numpy, elastofast; {work}\nprint(json.dumps([*sys.modules]))"
    assert not HEAVY & set(json.loads(run(code)))


def test_version_is_the_installed_one():
    assert elastofast.__version__ == importlib.metadata.version("elastofast")


def test_every_public_name_resolves():
    for name in elastofast.__all__:
        assert getattr(elastofast, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = elastofast.no_such_name


def test_build_info_says_how_the_core_was_built():
    info = _core.build_info()
    assert {"compiler", "flags", "instruction_sets", "instruction_set", "threads"} <= set(info)
    assert info["instruction_set"] in info["instruction_sets"]
    assert "-fopenmp" in info["flags"] and "-ffast-math" not in info["flags"]
    assert info["threads"] >= 1


def test_instruction_set_can_be_chosen_by_environment():
    code = "from elastofast import _core; print(_core.build_info()['instruction_set'])"
    for name in _core.build_info()["instruction_sets"]:
        assert run(code, ELASTOFAST_ISA=name) == name


def test_numbers_below_the_normal_range_survive_the_import():
    # a library linked with -ffast-math would flush them to zero in the whole process
    tiny = float.fromhex("0x1p-1060")
    assert tiny / 2 > 0
