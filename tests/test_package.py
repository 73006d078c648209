import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import elastofast
from elastofast import _core

HEAVY = {"torch", "numba", "cupy", "matplotlib", "h5py", "meshio", "skimage"}

# The parts of the package in the order in which data pass: each may import itself and those before it.
FLOW = (
    *("progress", "errors", "geometry", "laws", "boundary", "backend", "forward", "page"),
    *(
        "thumbnail",
        "io",
        "resumable",
        "measurement",
        "tracking",
        "joint",
        "misfit",
        "priors",
        "intervals",
        "result",
        "inversion",
    ),
    *("phantoms", "simulation", "verification", "metrics", "plots", "report"),
    *("learning", "evaluation", "interop", "cli", "__main__"),
)
UNORDERED = {"_core", "_cuda", "__version__"}  # compiled, or of the package itself


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
        "grid = elastofast.Grid((9, 9), (1e-3, 1e-3)); load = elastofast.compression(grid, pressure=1.0); "
        "m = elastofast.simulate(grid, elastofast.PlaneStress(0.3), load, numpy.full((9, 9), 1e4), snr=35.0); "
        "elastofast.reconstruct(m, prior='tv', max_iterations=1)",
    ],
    ids=["import", "forward solve", "reconstruction"],
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


def sources():
    """Syntax trees of all modules but the package's own, by their names within the package as tuples."""
    root = Path(elastofast.__file__).parent
    files = {path.relative_to(root).with_suffix("").parts: path for path in root.rglob("*.py")}
    return {name: ast.parse(path.read_text()) for name, path in files.items() if name != ("__init__",)}


def imports(name, tree):
    """What a module imports of the package, at its top or in a function: names as tuples, and line numbers."""
    package = elastofast.__name__
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [a.name.split(".") for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [package, *name][: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            found = [[*base, a.name] for a in node.names]
        yield from ((tuple(target[1:]) or (package,), node.lineno) for target in found if target[0] == package)


def test_every_part_of_the_package_has_its_place_in_the_flow():
    assert {name[0] for name in sources()} == set(FLOW)


def test_no_import_runs_against_the_flow():
    against = [
        f"{'/'.join(name)}.py:{line} imports {'.'.join(target)}"
        for name, tree in sources().items()
        for target, line in imports(name, tree)
        if target[0] not in {*FLOW[: FLOW.index(name[0]) + 1], *UNORDERED}
    ]
    assert not against


def test_no_modules_import_each_other_in_a_circle():
    modules = sources()
    graph = {}
    for name, tree in modules.items():
        needed = graph.setdefault(name, set())
        for target, _ in imports(name, tree):  # a module, a folder's own module, or a name in one of them
            places = target, (*target, "__init__"), target[:-1], (*target[:-1], "__init__")
            needed.update([place for place in places if place in modules][:1])
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
