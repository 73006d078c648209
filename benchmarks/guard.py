"""Work that needs no clock, against the committed numbers: ``python benchmarks/guard.py``.

Instructions of the compiled core (callgrind), iterations of the solvers, and peaks of memory must lie within 3 % of
those in results/guard.json; a change on purpose is committed with ``python benchmarks/guard.py --update``. One thread
and the oldest instruction set make the numbers the same on every processor; the instructions belong to one compiler,
and are skipped under any other, or where valgrind is missing. To show that a tenth more work would be noticed, one
kernel is counted a second time with a tenth more calls, and the guard must refuse that number.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from side_by_side import LAWS, RESULTS, problem

import elastofast as ef
from elastofast import _core

COMMITTED = RESULTS / "guard.json"
TOLERANCE = 0.03  # relative; the counts of instructions repeat to 1e-3, and the target is to notice 10 % more work
ISA = "v2"  # valgrind knows no AVX-512
NODES = 49  # a side
CALLS = 10  # of each kernel, so that one more is a tenth more work
STD = 2e-7  # metres, of the displacement
SEEDED = "force, one call more"  # stands for a change that costs a tenth more than "force, plane stress"


def main():
    """Compare, or update the committed numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="commit the numbers of today")
    parser.add_argument("--under-valgrind", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if ISA not in _core.build_info()["instruction_sets"]:
        print(f"guard skipped: the core is built without the instruction set {ISA}")
        return 0
    _core.set_num_threads(1)
    _core.select_instruction_set(ISA)
    if options.under_valgrind:
        return run_tasks()
    known = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    counted, reason = instructions(None if options.update else known.get("compiler"))
    found = {"iterations": iterations(), "peak bytes": peaks(), "instructions": counted}
    if options.update:
        if reason:
            print(f"not updated, because instructions cannot be counted: {reason}")
            return 1
        seeded = counted.pop(SEEDED)
        COMMITTED.write_text(json.dumps({"compiler": compiler()} | found, indent=1) + "\n")
        print(f"wrote {COMMITTED}; {SEEDED}: {seeded / counted['force, plane stress'] - 1:+.1%}")
        return 0
    if reason:
        print(f"instructions skipped: {reason}")
    seeded = counted.pop(SEEDED, None)
    wrong = [line for kind in found for line in differences(kind, known[kind], found[kind])]
    if seeded and not differences("", {"": known["instructions"]["force, plane stress"]}, {"": seeded}):
        wrong.append("the guard itself: a tenth more calls were not noticed")
    for line in wrong:
        print(line)
    if wrong:
        print("If this is meant: python benchmarks/guard.py --update")
    else:
        seen = f", and {seeded / known['instructions']['force, plane stress'] - 1:+.1%} is noticed" if seeded else ""
        print(f"{sum(map(len, found.values()))} numbers within {TOLERANCE:.0%} of the committed ones{seen}")
    return int(bool(wrong))


def differences(kind, known, found):
    """A line for each number that is not within the tolerance of the committed one, or that is not committed."""
    for name, value in found.items():
        if name not in known:
            yield f"{kind}, {name}: {value}, no committed value"
        elif abs(value - known[name]) > TOLERANCE * known[name]:
            yield f"{kind}, {name}: {value} instead of {known[name]} ({value / known[name] - 1:+.1%})"


def compiler():
    """The compiler and the flags of the core, which decide on its instructions."""
    info = _core.build_info()
    return f"{info['compiler']} {info['flags']}"


def tasks():
    """What is counted: calls without arguments, ready to run."""
    found = {}
    for name, law in LAWS.items():
        form, x, load = problem(NODES, law)
        u, v = np.random.default_rng(0).normal(size=(2, *form.dof_shape))
        stiffness, contraction = form.stiffness(x), form.contraction(u)
        force = load.force.reshape(2, -1)
        solver = form.solver(x, load.loaded)
        m = measurement(form, x, load)
        gamma = ef.NoiseCovariance(form, x, load, displacement_std=STD)
        found |= {
            f"force, {name}": repeated(form.force, x, u),
            f"force in float32, {name}": repeated(form.force, x.astype(np.float32), u.astype(np.float32)),
            f"sensitivity, {name}": repeated(form.sensitivity, u, v),
            f"stiffness, {name}": repeated(form.stiffness, x, out=stiffness),
            f"contraction, {name}": repeated(form.contraction, u, out=contraction),
            f"set-up of multigrid, {name}": repeated(form.solver, x, load.loaded, calls=1),
            f"forward solve, {name}": repeated(solver.solve, force, rtol=1e-8, calls=1),
            f"solve with Gamma, {name}": repeated(gamma.solve, gamma.apply(1e6 * u * load.loaded), calls=1),
            f"data term and gradient, {name}": repeated(at_two(ef.Fidelity(m), x), calls=1),
        }
        if name == "plane stress":
            found[SEEDED] = repeated(form.force, x, u, calls=CALLS + 1)
    return found


def repeated(function, *arguments, calls=CALLS, **options):
    """Some calls of a function as one."""

    def run():
        for _ in range(calls):
            function(*arguments, **options)

    return run


def at_two(fidelity, x):
    """The data term at two maps: at the one where it was last, it would go on from what it knows."""

    def run():
        fidelity(x)
        fidelity(1.1 * x)

    return run


def measurement(form, x, load):
    """A simulated measurement with a fixed noise."""
    return ef.simulate(form.geometry, form.law, load, x, snr=35.0, seed=0)


def run_tasks():
    """Under valgrind: every choice of the instruction set marks where a task begins."""
    for run in tasks().values():
        run()  # what is set up once is not counted
        _core.select_instruction_set(ISA)
        run()
        _core.select_instruction_set(ISA)
    return 0


def instructions(wanted):
    """Instructions of the core for each task, or {} and the reason; ``wanted`` is the compiler of the numbers."""
    if wanted is not None and wanted != compiler():
        return {}, f"the committed numbers belong to {wanted!r}, the core to {compiler()!r}"
    if not shutil.which("valgrind"):
        return {}, "valgrind is not installed"
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--dump-before=*select_kernels*"]
        command += [f"--callgrind-out-file={folder}/out", sys.executable, __file__, "--under-valgrind"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"valgrind failed:\n{done.stderr[-2000:]}")
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        names = [*tasks()]
        # one part before the first mark of `main`, then two marks for each task: its second run stands between them
        if len(parts) != 1 + 2 * len(names):
            return {}, f"the core has no symbol select_kernels (stripped?): {len(parts)} parts"
        return dict(zip(names, map(of_core, parts[2::2]), strict=True)), ""


def of_core(path):
    """Instructions that a part of callgrind's output attributes to the functions of the core themselves."""
    total, within, of_call, objects = 0, False, False, {}
    for line in path.read_text().splitlines():
        if match := re.match(r"(c?ob)=\((\d+)\)(?: (.*))?", line):
            kind, number, name = match.groups()
            if name:
                objects[number] = Path(name).name.startswith("_core.")
            if kind == "ob":
                within = objects[number]
        elif line.startswith("calls="):
            of_call = True  # the next line is the cost of the function that is called
        elif re.match(r"[+\-*\d]", line):
            if within and not of_call:
                total += int(line.split()[1])
            of_call = False
    return total


def iterations():
    """Iterations of the solvers and of a whole reconstruction."""
    found = {}
    for name, law in LAWS.items():
        form, x, load = problem(NODES, law)
        noise = np.random.default_rng(0).normal(size=(2, x.size)) * load.loaded.reshape(2, -1)
        found[f"forward solve, {name}"] = form.solver(x, load.loaded).solve(noise, rtol=1e-8).iterations
        gamma = ef.NoiseCovariance(form, x, load, displacement_std=STD, force_std=1e-5)
        r = gamma.apply(1e6 * np.random.default_rng(1).normal(size=form.dof_shape))
        found[f"solve with Gamma under force noise, {name}"] = gamma.solve(r).iterations
        result = ef.reconstruct(measurement(form, x, load), prior="tv", weight=1.0)
        found[f"reconstruction, {name}"] = len(result.history)
    return found


def peaks():
    """Largest amounts of memory that Python and NumPy hold beyond what was there before, and the hierarchy's bytes."""
    form, x, load = problem(NODES, LAWS["plane stress"])
    fidelity = ef.Fidelity(measurement(form, x, load))
    u = np.random.default_rng(0).normal(size=form.dof_shape)
    runs = {
        "force": lambda: form.force(x, u),
        "forward solve": lambda: ef.solve_forward(form, x, load),
        "data term and gradient": lambda: fidelity(x),
    }
    found = {}
    for name, run in runs.items():
        run()
        tracemalloc.start()
        run()
        found[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    found["multigrid hierarchy"] = form.solver(x, load.loaded)._core.nbytes
    return found


if __name__ == "__main__":
    sys.exit(main())
