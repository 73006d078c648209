"""Builds, tests and measures the GPU path in one call under ten minutes; writes benchmarks/results/gpu-<device>.json.

    python benchmarks/gpu.py              # all of it
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
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
MINUTES = 10
BEGAN = time.monotonic()


def left():
    """Seconds until the call should be over."""
    return max(60 * MINUTES - (time.monotonic() - BEGAN), 0)


def main():
    """Build, test, measure; whatever has been found is on disk at every moment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="neither build nor test")
    parser.add_argument("--arch", help="compute capabilities to build for (default: the device's)")
    options = parser.parse_args()
    os.environ["PATH"] += os.pathsep + "/usr/local/cuda/bin"
    sys.path.insert(0, str(ROOT))  # an editable install is seen only by processes that start after it
    steps = {} if options.measure else {**build(options.arch), **tests()}
    record(steps, {})  # what is known is written even if a measurement ends the run
    results = {}
    for name, measurement in MEASUREMENTS.items():
        try:
            results[name] = measurement() if left() > 20 else {"error": "not run: no time left"}
        except Exception as error:  # the rest is worth having
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(results[name]), flush=True)
        record(steps, results)
    failed = [name for name, step in steps.items() if step["code"]] + [n for n, r in results.items() if "error" in r]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


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


def step(command, limit, **environment):
    """Run a command; its code, seconds and last lines."""
    print("+", *command, flush=True)
    begin = time.perf_counter()
    running = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, code = running.communicate(timeout=min(limit, left()))[0], running.returncode
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # a sanitizer's own child would go on using the device
        output, code = running.communicate()[0], 124
    print(output[-3000:], flush=True)
    return {"code": code, "seconds": round(time.perf_counter() - begin, 1), "tail": output.splitlines()[-3:]}


def build(arch):
    """Install in place, with the CUDA kernels."""
    import cupy

    arch = arch or cupy.cuda.Device().compute_capability
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."]
    return {"build": step(pip, 240, ELASTOFAST_CUDA="1", ELASTOFAST_CUDA_ARCH=arch)}


def tests():
    """The GPU tests, and a few of them under compute-sanitizer."""
    pytest = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu"]
    pytest += ["tests/test_device.py", "tests/test_cuda.py"]
    done = {"tests": step(pytest, 180)}
    sanitizer = shutil.which("compute-sanitizer")
    few = [*pytest, "-k", "cupy and (contractions or sparse or solvers) and stress and not (shape3 or 65)"]
    for tool in ("memcheck", "racecheck", "initcheck"):
        if sanitizer is None:
            done[tool] = {"code": 127, "seconds": 0.0, "tail": ["not run: there is no compute-sanitizer"]}
            continue
        # initcheck has to see what CuPy's own kernels write
        own = [] if tool == "initcheck" else ["--kernel-regex", "kns=elastofast"]
        done[tool] = step([sanitizer, "--tool", tool, "--error-exitcode", "9", *own, *few], 60)
    return done


# ------------------------------------------------------------------------------------------------ measurements


def seconds(work, repeats=20):
    """Median seconds on the device of a piece of work, by events."""
    from cupyx.profiler import benchmark

    done = benchmark(work, n_repeat=repeats, n_warmup=3)
    return float(np.median(np.maximum(done.gpu_times[0], done.cpu_times)))


def body(n, batch=(), dtype="float64"):
    """Form and modulus (a rough inclusion) on n x n nodes."""
    import cupy

    import elastofast as ef

    grid = ef.Grid((n, n), (0.04 / n, 0.04 / n))
    form = ef.ElasticForm(grid, ef.PlaneStress(0.495))
    y, x = cupy.meshgrid(cupy.linspace(-1, 1, n), cupy.linspace(-1, 1, n), indexing="ij")
    modulus = cupy.where(x**2 + y**2 < 0.1, 5e4, 1e4).astype(dtype)
    modulus = modulus * cupy.random.default_rng(SEED).uniform(0.8, 1.2, (*batch, n, n)).astype(dtype)
    return form, modulus


def problem(n, batch=()):
    """The same and a load."""
    import elastofast as ef

    form, modulus = body(n, batch)
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

        calls = 20  # Python's share of one would count beside so short a kernel

        def several():
            for _ in range(calls):
                form.force(x, u, out=out)

        t = seconds(several) / calls
        moved = 5 * x.nbytes
        return {"ms": 1e3 * t, "GB/s": moved / t / 1e9, "of copy": moved / t / 1e9 / copy_bandwidth()["GB/s"]}

    return measure


def csr_product():
    """K(x) u at 1024 x 1024 against CuPy's own CSR, and the values of K(x) for a new x."""
    import cupy

    form, x = body(1024)
    u = cupy.random.default_rng(SEED).standard_normal(form.dof_shape)
    k = form.stiffness(x)
    ours, theirs = seconds(lambda: form.force(x, u)), seconds(lambda: k @ u.ravel())
    return {"ms": 1e3 * ours, "csr ms": 1e3 * theirs, "ratio": theirs / ours,
            "values ms": 1e3 * seconds(lambda: form.stiffness(x, out=k))}  # fmt: skip


def forward(n):
    """Forward solve to 1e-8 and its parts."""
    def measure():
        form, x, load = problem(n)
        active = load.loaded.reshape(2, -1)
        flat = x.reshape(-1)
        solver = form.solver(flat, active)
        rhs = solver.home.xp.asarray(load.force.reshape(2, -1))
        return {"set-up ms": 1e3 * seconds(lambda: form.solver(flat, active), 5),
                "solve ms": 1e3 * seconds(lambda: solver.solve(rhs), 5),
                "cycle ms": 1e3 * seconds(lambda: solver.precondition(rhs)),
                "iterations": solver.solve(rhs).iterations}  # fmt: skip

    return measure


def other_solvers():
    """One system at 512 x 512 by ours and by the solvers of CuPy, torch-fem and JAX-FEM, each on this device."""
    import cupy

    import elastofast as ef

    form, x, load = problem(512)
    keep = cupy.asarray(load.loaded.ravel())
    k = form.stiffness(x)[keep][:, keep]
    k.sort_indices()
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

    without_pictures("pyfiglet", "petsc4py")
    sys.modules["petsc4py"].PETSc.ScalarType = np.float64
    import jax
    from jax_fem.solver import jax_solve

    class Matrix:
        """What it asks of a PETSc matrix."""

        getSize = staticmethod(lambda: k.shape)
        getValuesCSR = staticmethod(lambda host=tuple(map(cupy.asnumpy, (k.indptr, k.indices, k.data))): host)

    b = jax.numpy.from_dlpack(rhs)

    def solve():
        return cupy.from_dlpack(jax.block_until_ready(jax_solve(Matrix, b, jax.numpy.zeros_like(b), True)))

    solve()
    return solve


def graph(n):
    """A V-cycle as single launches and as one CUDA graph: whether launches dominate."""
    def measure():
        import cupy

        form, x, load = problem(n)
        solver = form.solver(x.reshape(-1), load.loaded.reshape(2, -1))
        r = cupy.asarray(load.force.reshape(1, 2, -1))
        apart = seconds(lambda: solver.precondition(r))
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            solver.precondition(r)
            stream.synchronize()
            stream.begin_capture()
            solver.precondition(r)
            captured = stream.end_capture()
            together = seconds(lambda: captured.launch(stream))
        return {"ms": 1e3 * apart, "graph ms": 1e3 * together}

    return measure


def gamma(n, force_std=0.0):
    """Solve with the noise covariance to 1e-8, solver set up."""
    def measure():
        import cupy

        import elastofast as ef

        form, x, load = problem(n)
        covariance = ef.NoiseCovariance(form, x, load, 1e-6, force_std)
        r = cupy.random.default_rng(SEED).standard_normal(form.dof_shape)
        return {"ms": 1e3 * seconds(lambda: covariance.solve(r), 5), "residual": covariance.solve(r).stage_residual}

    return measure


def data_set():
    """Forward solves a second at 512 x 512, by batch size."""
    import elastofast as ef

    found = {}
    for batch in (1, 8, 32, 64):
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
    results = ef.reconstruct(members, prior=prior)
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
    """Forward solve on ever larger grids until memory ends."""
    import cupy

    import elastofast as ef

    found = {}
    last = 0.0
    for n in (4096, 8192, 16384):
        if 5 * last > left():  # four times the work
            found[str(n)] = "not run: no time left"
            break
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        begin = time.perf_counter()
        try:
            form, x, load = problem(n)
            made = time.perf_counter()
            ef.solve_forward(form, x, load)
            cupy.cuda.Device().synchronize()
        except Exception as error:  # the smaller ones are worth having
            found[str(n)] = f"{type(error).__name__}: {error}"
            break
        last = time.perf_counter() - begin
        found[str(n)] = {
            "first solve s, layout on the host included": time.perf_counter() - made,
            "bytes a node": pool.total_bytes() / n**2,
        }
    return found


MEASUREMENTS = {
    "copy": copy_bandwidth,
    "force 4096 float64": force("float64"),
    "force 4096 float32": force("float32"),
    "csr 1024": csr_product,
    "forward 512": forward(512),
    "forward 2048": forward(2048),
    "other solvers 512": other_solvers,
    "gamma 512": gamma(512),
    "gamma 2048": gamma(2048),
    "gamma 512 force noise": gamma(512, 1e-4),
    "data set 512": data_set,
    "reconstruction 512 tv": partial(reconstruction, 512, "tv"),
    "reconstruction 512 critic": partial(reconstruction, 512, "critic"),
    "16 reconstructions 128 critic": partial(reconstruction, 128, "critic", 16),
    "graph 512": graph(512),
    "largest": largest,
}

if __name__ == "__main__":
    main()
