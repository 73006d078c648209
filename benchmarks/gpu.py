"""Builds, tests and measures the GPU path in one call under ten minutes; writes benchmarks/results/gpu-<device>.json.

    python benchmarks/gpu.py              # all of it
    python benchmarks/gpu.py --measure    # only the measurements, with what is installed

Needs nvcc, a CUDA device, CuPy 14 or later, setuptools, pybind11 and pytest; torch, compute-sanitizer, torch-fem and
JAX-FEM are used where they are, and what is missing is recorded. No network.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
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


def cupy_cg():
    """Forward solve at 512 x 512 by CuPy's CG on its own CSR matrix, plain and with a diagonal preconditioner."""
    import cupy
    import cupyx.scipy.sparse as sparse
    from cupyx.scipy.sparse.linalg import cg

    import elastofast as ef

    form, x, load = problem(512)
    keep = cupy.asarray(load.loaded.ravel())
    k = form.stiffness(x)[keep][:, keep]
    rhs = cupy.asarray(load.force.ravel())[keep]
    diagonal = sparse.diags(1 / k.diagonal(), format="csr")
    ours = seconds(lambda: ef.solve_forward(form, x, load), 3)
    found = {"ms": 1e3 * ours}
    for name, m in (("plain", None), ("diagonal", diagonal)):
        cg(k, rhs, rtol=1e-8, maxiter=10, M=m)  # warm up
        cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        u, _ = cg(k, rhs, rtol=1e-8, maxiter=20000, M=m)
        residual = float(cupy.linalg.norm(rhs - k @ u) / cupy.linalg.norm(rhs))
        theirs = time.perf_counter() - begin
        found |= {f"{name} ms": 1e3 * theirs, f"{name} residual": residual, f"{name} ratio": theirs / ours}
    return found


def other_packages():
    """Forward solve at 512 x 512 by torch-fem and JAX-FEM, or why not."""
    found = {}
    for name, module, race in (("torch-fem", "torchfem", torch_fem), ("JAX-FEM", "jax_fem", None)):
        try:
            __import__(module)
        except ImportError as error:
            found[name] = f"not run: {error}"
            continue
        found[name] = race() if race else "not run: its problem has to be written for its own mesh classes"
    return found


@contextlib.contextmanager
def double_precision():
    """For torch's new tensors, in here alone: the critic is measured after it."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def torch_fem(n=512, device="cuda"):
    """Bilinear plane-stress elements on the same grid, homogeneous; its own conjugate gradients."""
    import torch
    from torchfem import Planar
    from torchfem.materials import IsotropicElasticityPlaneStress

    with double_precision(), torch.device(device):
        line = torch.linspace(0, 0.04, n)
        nodes = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        first = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1, 1)
        model = Planar(nodes, first + torch.tensor([0, n, n + 1, 1]), IsotropicElasticityPlaneStress(E=1e4, nu=0.495))
        model.constraints[-n:, 0] = True
        model.constraints[-n // 2, 1] = True
        model.forces[:n, 0] = 100 * 0.04 / n
        found = {}
        for preconditioner in ("jacobi", "amg"):
            begin = time.perf_counter()
            try:
                model.solve(method="cg", preconditioner=preconditioner, device=device)
            except Exception as error:  # it may not converge, or lack a package
                found[preconditioner] = f"{type(error).__name__}: {error}"
                continue
            if device == "cuda":
                torch.cuda.synchronize()
            found[f"{preconditioner} ms"] = 1e3 * (time.perf_counter() - begin)
    return found


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
    "cupy cg 512": cupy_cg,
    "other packages 512": other_packages,
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
