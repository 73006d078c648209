"""Builds, measures and tests the GPU path in one call under ten minutes; writes benchmarks/results/gpu-<device>.json.

    python benchmarks/gpu.py              # all of it
    python benchmarks/gpu.py --installed  # with what is installed
    python benchmarks/gpu.py --measure    # only the measurements, with what is installed

Needs nvcc, a CUDA device, CuPy 14 or later, setuptools, pybind11 and pytest; torch, compute-sanitizer, torch-fem and
JAX-FEM are used where they are, and what is missing is recorded. No network.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
BEGAN = time.monotonic()
TESTS = 75  # seconds that measurements leave for what comes after them


def main():
    """Build, measure, test; whatever has been found is on disk at every moment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="neither build nor test")
    parser.add_argument("--installed", action="store_true", help="do not build")
    parser.add_argument("--largest", action="store_true", help="only the largest grid, whose figures are printed")
    parser.add_argument("--arch", help="compute capabilities to build for (default: the device's)")
    parser.add_argument("--seconds", type=int, default=590, help="how long the call may take")
    options = parser.parse_args()

    def left():
        return max(options.seconds - (time.monotonic() - BEGAN), 0)

    os.environ["PATH"] += os.pathsep + "/usr/local/cuda/bin"
    sys.path.insert(0, str(ROOT))  # an editable install is seen only by processes that start after it
    if options.largest:
        print(json.dumps(attempt(largest)))
        return
    steps = {} if options.measure or options.installed else {"build": build(options.arch)}
    results = {}
    record(steps, results)  # what is known is written even if a measurement ends the run
    reserve = 0 if options.measure else TESTS
    for name, measurement in MEASUREMENTS.items():
        results[name] = attempt(measurement) if left() > reserve else {"error": "not run: no time left"}
        print(name, json.dumps(results[name]), flush=True)
        record(steps, results)
    # what is not timed runs side by side
    alone = begin([sys.executable, __file__, "--largest"])
    running = {} if options.measure else {name: begin(*command) for name, command in tests().items()}
    for name, process in running.items():
        steps[name] = end(process, left())
        print(name, json.dumps(steps[name]), flush=True)
        record(steps, results)
    finished = end(alone, left())
    results["largest"] = {"error": finished} if finished["code"] else json.loads(finished["tail"][-1])
    print("largest", json.dumps(results["largest"]), flush=True)
    record(steps, results)
    failed = [name for name, step in steps.items() if step["code"]] + [n for n, r in results.items() if "error" in r]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def attempt(measurement):
    """A measurement, or why there is none: the others are worth having."""
    import cupy

    try:
        return measurement()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        cupy.get_default_memory_pool().free_all_blocks()


def record(steps, results):
    """Write what is known so far."""
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    target = ROOT / "benchmarks" / "results" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    packages = ("elastofast", "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "torch", "torch-fem", "jax-fem")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    target.write_text(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "device": device,
                "commit": commit.stdout.strip() or None,
                "driver": cupy.cuda.runtime.driverGetVersion(),
                "runtime": cupy.cuda.runtime.runtimeGetVersion(),
                "python": platform.python_version(),
                "versions": {name: version(name) for name in packages},
                "steps": steps,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )


def version(name):
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def begin(command, **environment):
    """Start a command whose output is kept in a file."""
    print("+", *command, flush=True)
    output = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, start_new_session=True, stdout=output,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    return process, output, time.perf_counter()


def end(running, limit):
    """Wait for a command; its code, seconds and last lines."""
    process, output, began = running
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a sanitizer's own child would go on using the device
        process.wait()
        code = 124
    seconds = round(time.perf_counter() - began, 1)
    output.seek(0)
    lines = output.read().splitlines()
    print(*(line[:200] for line in lines[-30:] if code), sep="\n", flush=True)
    return {"code": code, "seconds": seconds, "tail": [line[:1000] for line in lines[-3:]]}


def build(arch):
    """Install in place, with the CUDA kernels."""
    import cupy

    arch = arch or cupy.cuda.Device().compute_capability
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."]
    return end(begin(pip, ELASTOFAST_CUDA="1", ELASTOFAST_CUDA_ARCH=arch), 300)


def tests():
    """The commands of the GPU tests, and of a few of them under compute-sanitizer."""
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu"]
    options += ["tests/test_device.py", "tests/test_cuda.py"]
    side_by_side = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    commands = {"tests": ([sys.executable, "-m", "pytest", *side_by_side, *options],)}
    sanitizer = shutil.which("compute-sanitizer")
    few = "cupy and stress and (contractions or sparse or (solvers and (shape1 or shape2)))"
    # without CuPy's pool each array is an allocation of its own, whose ends are checked
    alone = "import sys, cupy, pytest; cupy.cuda.set_allocator(None); sys.exit(pytest.main(sys.argv[1:]))"
    for tool in ("memcheck", "racecheck", "initcheck") if sanitizer else ():
        # initcheck has to see what CuPy's own kernels write
        own = [] if tool == "initcheck" else ["--kernel-regex", "kns=elastofast"]
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *own]
        commands[tool] = ([*command, sys.executable, "-c", alone, *options, "-k", few],)
    return commands


# ------------------------------------------------------------------------------------------------ measurements


def seconds(work, repeats=20):
    """Median seconds on the device of a piece of work, by events."""
    from cupyx.profiler import benchmark

    done = benchmark(work, n_repeat=repeats, n_warmup=3)
    return float(np.median(np.maximum(done.gpu_times[0], done.cpu_times)))


def seconds_each(work, calls=20):
    """The same of one of several calls in turn: Python's share would count beside a short kernel."""

    def several():
        for _ in range(calls):
            work()

    return seconds(several) / calls


def body(n, batch=(), dtype="float64", law=None):
    """Form and modulus (a rough inclusion) on n x n nodes."""
    import cupy

    import elastofast as ef

    grid = ef.Grid((n, n), (0.04 / n, 0.04 / n))
    form = ef.ElasticForm(grid, law or ef.PlaneStress(0.495))
    y, x = cupy.meshgrid(cupy.linspace(-1, 1, n), cupy.linspace(-1, 1, n), indexing="ij")
    modulus = cupy.where(x**2 + y**2 < 0.1, 5e4, 1e4).astype(dtype)
    modulus = modulus * cupy.random.default_rng(SEED).uniform(0.8, 1.2, (*batch, n, n)).astype(dtype)
    return form, modulus


def problem(n, batch=(), law=None):
    """The same and a load."""
    import elastofast as ef

    form, modulus = body(n, batch, law=law)
    return form, modulus, ef.compression(form.geometry, pressure=100.0)


def copy_bandwidth():
    """Copy of 2 GB."""
    import cupy

    a = cupy.ones(2**28)
    b = cupy.empty_like(a)
    return {"GB/s": 2 * a.nbytes / seconds(lambda: cupy.copyto(b, a)) / 1e9}


def force(dtype):
    """K(x) u on 4096 x 4096 nodes, against the copy: five values a node move at least."""

    def measure():
        import cupy

        form, x = body(4096, dtype=dtype)
        u = cupy.random.default_rng(SEED).standard_normal(form.dof_shape).astype(dtype)
        out = cupy.empty_like(u)
        t = seconds_each(lambda: form.force(x, u, out=out))
        moved = 5 * x.nbytes
        return {"ms": 1e3 * t, "GB/s": moved / t / 1e9, "of copy": moved / t / 1e9 / copy_bandwidth()["GB/s"]}

    return measure


def csr_product():
    """K(x) u at 1024 x 1024 against CuPy's own CSR, and the values of K(x) for a new x."""
    import cupy

    form, x = body(1024)
    u = cupy.random.default_rng(SEED).standard_normal(form.dof_shape)
    k, out, flat = form.stiffness(x), cupy.empty_like(u), u.ravel()
    ours, theirs = seconds_each(lambda: form.force(x, u, out=out)), seconds_each(lambda: k @ flat)
    return {"ms": 1e3 * ours, "csr ms": 1e3 * theirs, "ratio": theirs / ours,
            "values ms": 1e3 * seconds_each(lambda: form.stiffness(x, out=k))}  # fmt: skip


def plane_strain():
    """The law that is harder to solve."""
    import elastofast as ef

    return ef.PlaneStrain(0.495)


def forward(n, law=lambda: None):
    """Forward solve to 1e-8 and its parts."""

    def measure():
        form, x, load = problem(n, law=law())
        active = load.loaded.reshape(2, -1)
        flat = x.reshape(-1)
        solver = form.solver(flat, active)
        rhs = solver.device.xp.asarray(load.force.reshape(2, -1))
        return {"set-up ms": 1e3 * seconds(lambda: form.solver(flat, active), 5),
                "solve ms": 1e3 * seconds(lambda: solver.solve(rhs), 5),
                "cycle ms": 1e3 * seconds(lambda: solver.precondition(rhs)),
                "iterations": solver.solve(rhs).iterations}  # fmt: skip

    return measure


def other_solvers():
    """One system at 512 x 512 by ours, set-up included, and by the solvers of CuPy, torch-fem and JAX-FEM."""
    import cupy
    from cupyx.scipy.sparse import csr_matrix

    import elastofast as ef

    form, x, load = problem(512)
    keep = load.loaded.ravel()
    k = csr_matrix(form.stiffness(cupy.asnumpy(x))[keep][:, keep])
    keep = cupy.asarray(keep)
    rhs = cupy.asarray(load.force.ravel())[keep]
    found = {"ms": 1e3 * seconds(lambda: ef.solve_forward(form, x, load), 5)}
    u = ef.solve_forward(form, x, load).ravel()[keep]
    found["residual"] = float(cupy.linalg.norm(rhs - k @ u) / cupy.linalg.norm(rhs))
    solvers = {
        "CuPy CG": partial(cupy_cg, None),
        "CuPy CG, Jacobi": partial(cupy_cg, 1 / k.diagonal()),
        "torch-fem CG, Jacobi": torch_fem,
        "JAX-FEM BiCGSTAB, Jacobi": jax_fem,
    }
    for name, solver in solvers.items():
        try:
            solve = solver(k, rhs)
            cupy.cuda.Device().synchronize()
            begin = time.perf_counter()
            u = solve()
            cupy.cuda.Device().synchronize()
            theirs = 1e3 * (time.perf_counter() - begin)
            residual = float(cupy.linalg.norm(rhs - k @ u) / cupy.linalg.norm(rhs))
            found[name] = {"ms": theirs, "residual": residual, "ratio": theirs / found["ms"]}
        except Exception as error:  # not installed, or it does not converge
            found[name] = f"{type(error).__name__}: {error}"[:300]
    return found


def cupy_cg(inverse_diagonal, k, rhs):
    """CuPy's conjugate gradients on its own CSR matrix."""
    import cupyx.scipy.sparse as sparse
    from cupyx.scipy.sparse.linalg import cg

    m = None if inverse_diagonal is None else sparse.diags(inverse_diagonal, format="csr")
    cg(k, rhs, rtol=1e-8, maxiter=10, M=m)  # warm up
    return lambda: cg(k, rhs, rtol=1e-8, maxiter=20000, M=m)[0]


def without_pictures(*names):
    """Stand-ins for what a package imports to draw, mesh or solve elsewhere, where that is not installed."""
    from unittest.mock import MagicMock

    for name in names:
        if name.partition(".")[0] not in sys.modules and importlib.util.find_spec(name.partition(".")[0]) is None:
            sys.modules[name] = MagicMock()


def torch_fem(k, rhs):
    """torch-fem's default for large systems on CUDA."""
    import cupy
    import torch

    without_pictures("pyvista.plotting", "pyvista", "pyamg")
    from torchfem.sparse import sparse_solve

    a = torch.sparse_csr_tensor(*map(torch.from_dlpack, (k.indptr, k.indices, k.data)), size=k.shape)
    b = torch.from_dlpack(rhs)
    return lambda: cupy.from_dlpack(sparse_solve(a, b, None, 1e-8, "cuda", "cg", "jacobi", None)[0])


def jax_fem(k, rhs):
    """JAX-FEM's own solver, to its fixed tolerance of 1e-10; compilation is not counted."""
    import cupy

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # it would take most of the device's memory
    without_pictures("pyfiglet", "petsc4py")
    sys.modules["petsc4py"].PETSc.ScalarType = np.float64
    import jax
    from jax_fem.solver import jax_solve

    host = tuple(map(cupy.asnumpy, (k.indptr, k.indices, k.data)))

    class Matrix:
        """What it asks of a PETSc matrix."""

        getSize = staticmethod(lambda: k.shape)
        getValuesCSR = staticmethod(lambda: host)

    b = jax.numpy.from_dlpack(rhs)

    def solve():
        return cupy.from_dlpack(jax.block_until_ready(jax_solve(Matrix, b, jax.numpy.zeros_like(b), True)))

    jax_solve(Matrix, jax.numpy.zeros_like(b), jax.numpy.zeros_like(b), True)  # compiles
    return solve


def gamma(n, force_std=0.0, law=lambda: None):
    """Solve with the noise covariance to 1e-8, with the solver's set-up and without."""

    def measure():
        import cupy

        import elastofast as ef

        form, x, load = problem(n, law=law())
        r = cupy.random.default_rng(SEED).standard_normal(form.dof_shape)

        def set_up():
            return ef.NoiseCovariance(form, x, load, 1e-6, force_std)

        covariance = set_up()
        found = covariance.solve(r)
        return {
            "ms": 1e3 * seconds(lambda: covariance.solve(r), 7),
            "with set-up ms": 1e3 * seconds(lambda: set_up().solve(r), 7),
            "iterations": found.iterations,
            "residual": found.stage_residual,
        }

    return measure


def data_set():
    """Forward solves a second at 512 x 512, by batch size."""
    import elastofast as ef

    found = {}
    for batch in (1, 16, 64):
        form, x, load = problem(512, (batch,))
        found[str(batch)] = batch / seconds(lambda form=form, x=x, load=load: ef.solve_forward(form, x, load), 3)
    return found


def reconstruction(n, prior, batch=1):
    """Whole reconstructions on n x n nodes in one go, automatic weights; data made on the host."""
    import cupy

    import elastofast as ef

    grid = ef.Grid((n, n), (0.0384 / n, 0.0384 / n))
    load, law = ef.compression(grid, pressure=100.0), ef.PlaneStress(0.495)
    truths, members = [], []
    for seed in range(1, batch + 1):
        truth, _ = ef.lesion(grid, seed=seed)
        m = ef.simulate(grid, law, load, truth, snr=35.0, seed=seed)
        truths.append(truth)
        members.append(ef.Measurement(grid, law, load, cupy.asarray(m.displacement), m.displacement_std))
    ef.reconstruct(members, prior=prior, max_iterations=2)  # warm up
    results = min((ef.reconstruct(members, prior=prior) for _ in range(2)), key=lambda found: found[0].seconds)
    errors = [
        float(np.linalg.norm(cupy.asnumpy(result.modulus) - truth) / np.linalg.norm(truth))
        for result, truth in zip(results, truths, strict=True)
    ]
    return {
        "s": results[0].seconds,
        "s a map": results[0].seconds / batch,
        "steps": max(len(result.history) for result in results),
        "mean relative error": float(np.mean(errors)),
        "status": sorted({result.status for result in results}),
    }


def largest():
    """Forward solve on the largest grid that fits, and its memory; data made on the device."""
    import cupy

    import elastofast as ef

    found = {}
    for n in (16384, 8192):
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        begin = time.perf_counter()
        try:
            form, modulus = body(8192)  # doubled: its own making takes memory
            form = ef.ElasticForm(ef.Grid((n, n), (0.04 / n, 0.04 / n)), ef.PlaneStress(0.495))
            x = cupy.tile(modulus, (n // 8192, n // 8192))
            del modulus
            pool.free_all_blocks()
            fixed, forces = np.zeros((2, n, n), bool), np.zeros((2, n, n))  # as `compression`, without its checks
            fixed[0, -1], fixed[1, -1, n // 2], forces[0, 0] = True, True, 100.0 * 0.04 / n
            load = ef.Boundary(fixed=fixed, force=forces)
            made = time.perf_counter()
            u = ef.solve_forward(form, x, load)
            cupy.cuda.Device().synchronize()
            solved = time.perf_counter()
            found[str(n)] = {
                "data s": made - begin,
                "first solve s, layout on the host included": solved - made,
                "bytes a node": pool.total_bytes() / n**2,
                "top displacement mm": 1e3 * float(u[0, 0].mean()),
            }
            del u
            begin = time.perf_counter()
            ef.solve_forward(form, x, load)
            cupy.cuda.Device().synchronize()
            found[str(n)]["second solve s"] = time.perf_counter() - begin
            break
        except Exception as error:  # the smaller one is worth having
            found[str(n)] = f"{type(error).__name__}: {error}"
    return found


MEASUREMENTS = {
    "copy": copy_bandwidth,
    "force 4096 float64": force("float64"),
    "force 4096 float32": force("float32"),
    "csr 1024": csr_product,
    "forward 512": forward(512),
    "forward 512 plane strain": forward(512, plane_strain),
    "forward 2048": forward(2048),
    "gamma 512": gamma(512),
    "gamma 512 plane strain": gamma(512, law=plane_strain),
    "gamma 2048": gamma(2048),
    "gamma 512 force noise": gamma(512, 1e-4),
    "data set 512": data_set,
    "reconstruction 512 tv": partial(reconstruction, 512, "tv"),
    "reconstruction 512 critic": partial(reconstruction, 512, "critic"),
    "16 reconstructions 128 critic": partial(reconstruction, 128, "critic", 16),
    "other solvers 512": other_solvers,
}

if __name__ == "__main__":
    main()
