"""The core among threads, signals, processes and other libraries."""

import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse.linalg import spsolve
from test_fidelity import SIGMA, measure

import elastofast as ef
from elastofast import _core
from elastofast.backend.processes import in_processes
from elastofast.backend.processors import processors, thread_pool, threads
from elastofast.forward.krylov import semi_iteration

THREADS, ROUNDS = 8, 3
GEOMETRIES = [pytest.param("65 x 40", id="grid"), pytest.param("mesh", id="mesh")]


def problem(geometry):
    if geometry == "mesh":
        m, x = measure("mesh", "plane stress", "pressure")
    else:
        grid = ef.Grid((65, 40), (1e-3, 1e-3))
        x = np.random.default_rng(0).uniform(1e4, 2e4, grid.shape)
        load = ef.compression(grid, pressure=100.0)
        m = ef.simulate(grid, ef.PlaneStrain(0.45), load, x, snr=100.0, seed=1)
    moduli = [x * factor for factor in np.random.default_rng(1).uniform(0.9, 1.1, (ROUNDS, *x.shape))]
    return m, moduli


def works(m, moduli):
    """By name, what makes an object and what is done with it for each modulus; results are lists of arrays."""
    form, u = m.form, m.displacement
    right = m.load.force.reshape(m.load.force.shape[0], -1)
    return {
        "form": (
            lambda: form,
            lambda form, x: [form.force(x, u), form.sensitivity(u, form.force(x, u)), form.stiffness(x).data],
        ),
        "solver": (
            lambda: form.solver(moduli[0].ravel(), m.load.loaded),
            lambda s, x: [s.solve(right).value, s.precondition(right), s.approximate_inverse(right, 1e-3)],
        ),
        "covariance": (
            lambda: ef.NoiseCovariance(form, moduli[0], m.load, SIGMA),
            lambda gamma, x: [gamma.solve(x * u).value, gamma.apply(x * u)],
        ),
        "fidelity": (lambda: ef.Fidelity(m), lambda fidelity, x: [np.array(fidelity(x)[0]), fidelity(x)[1]]),
    }


def in_threads(work, count=THREADS):
    """What ``work(k)`` returns in as many threads that begin at once."""
    together = threading.Barrier(count)

    def begin(k):
        together.wait()
        return work(k)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_threads_get_what_one_thread_gets(geometry, shared):
    m, moduli = problem(geometry)
    for name, (make, work) in works(m, moduli).items():
        alone = make()
        expected = [work(alone, x) for x in moduli]
        common = make()

        def thread(_, make=make, work=work, common=common):
            own = common if shared else make()
            return [work(own, x) for x in moduli]

        for found in in_threads(thread):
            for some, others in zip(found, expected, strict=True):
                for a, b in zip(some, others, strict=True):
                    np.testing.assert_array_equal(a, b, err_msg=name)


def test_python_goes_on_while_the_core_works():
    """With Python's lock held, the other thread would not come to count before the work has ended."""
    grid = ef.Grid((257, 257), (1e-3, 1e-3))
    form, load = ef.ElasticForm(grid, ef.PlaneStress(0.495)), ef.compression(grid, pressure=100.0)
    solver = form.solver(np.full(grid.n_nodes, 1e4), load.loaded)
    steps, begun, ended = semi_iteration(0.1, 1.0, 100), threading.Event(), threading.Event()

    def work():
        begun.set()
        solver._core.accelerated(load.force.reshape(2, -1).copy(), steps)  # one call
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    count = 0
    while not ended.wait(1e-4):
        count += 1
    thread.join()
    assert count > 10


class Rang(Exception):
    pass


@pytest.fixture
def alarm():
    def ring(*_):
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_signals_end_long_work_and_leave_the_solver_usable(alarm):
    """As Ctrl-C does. The solves would take minutes: 10^5 V-cycles, or residuals that cannot be reached."""
    grid = ef.Grid((257, 257), (1e-3, 1e-3))
    form, load = ef.ElasticForm(grid, ef.PlaneStrain(0.495)), ef.compression(grid, pressure=100.0)
    x = np.random.default_rng(0).uniform(1e4, 2e4, grid.n_nodes)
    force = load.force.reshape(2, -1).copy()
    solver = form.solver(x, load.loaded)
    expected = solver.solve(force).value
    alarm(0.15)
    with pytest.raises(Rang):
        solver._core.accelerated(force, semi_iteration(0.1, 1.0, 1000) * 100)
    np.testing.assert_array_equal(solver.solve(force).value, expected)
    alarm(0.15)
    with pytest.raises(Rang):
        while True:  # each fails, unless it is interrupted
            solver._core.solve(force, np.zeros_like(force), 1e-300, 10**9, True)
    np.testing.assert_array_equal(solver.solve(force).value, expected)


def test_an_interrupted_update_has_to_be_repeated(alarm):
    grid = ef.Grid((129, 129), (1e-3, 1e-3))
    form, load = ef.ElasticForm(grid, ef.PlaneStress(0.495)), ef.compression(grid, pressure=100.0)
    x, force = np.full(grid.n_nodes, 1e4), load.force.reshape(2, -1).copy()
    solver = form.solver(x, load.loaded)
    expected = solver.solve(force).value
    interrupted = False
    while not interrupted:  # most alarms ring inside an update, some between two
        alarm(0.12)
        with pytest.raises(Rang):
            while True:
                solver._core.update(2 * x, None)
        try:
            solver._core.apply(force)
        except RuntimeError as error:
            assert "update it again" in str(error)
            interrupted = True
    solver.update(x)
    np.testing.assert_array_equal(solver.solve(force).value, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_updated_solver_is_a_new_one(geometry):
    m, moduli = problem(geometry)
    form, mask = m.form, m.load.loaded.reshape(m.load.loaded.shape[0], -1)
    r = np.random.default_rng(0).normal(size=mask.shape)
    shift = np.abs(r)
    for first, then in ((None, None), (shift, None), (None, shift), (shift, 2 * shift)):
        solver = form.solver(moduli[0].ravel(), mask, first)
        solver.solve(r)
        with np.errstate(all="ignore"), pytest.raises((ef.SolveError, ValueError)):
            solver.solve(r * np.nan)  # leaves nothing behind
        for x in moduli[1:]:
            solver.update(x.ravel(), then)
            fresh = form.solver(x.ravel(), mask, then)
            for name, argument in (("precondition", ()), ("approximate_inverse", (1e-3,)), ("apply", ())):
                found, expected = (getattr(s, name)(r, *argument) for s in (solver, fresh))
                np.testing.assert_array_equal(found, expected, err_msg=name)
            u = solver.solve(r).value
            np.testing.assert_array_equal(u, fresh.solve(r).value)
        matrix = form.stiffness(moduli[-1]).tocsr()[mask.ravel()][:, mask.ravel()]
        if then is not None:
            matrix = matrix.copy()
            matrix.setdiag(matrix.diagonal() + then[mask])
        reference = spsolve(matrix.tocsc(), r[mask])
        np.testing.assert_allclose(u[mask], reference, rtol=1e-5, atol=1e-6 * np.abs(reference).max())
    if geometry != "mesh":
        for wrong in (moduli[0].ravel()[:-1], moduli[0].ravel()[::2]):
            with pytest.raises(ValueError, match="reshape"):
                solver.update(wrong)


def in_new_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="the system does not list loaded libraries")
@pytest.mark.parametrize("order", ["elastofast._core numba torch", "torch numba elastofast._core"])
def test_one_openmp_beside_torch_and_numba(order):
    for name in order.split():
        pytest.importorskip(name)
    code = f"import {order.replace(' ', ', ')}; print(open('/proc/self/maps').read())"
    maps = in_new_process(code + "; elastofast._core.get_num_threads()")
    assert len(set(re.findall(r"/\S*lib(?:gomp|i?omp\d?)[-.]\S*", maps))) == 1


def test_openmp_limits_are_respected():
    code = "from elastofast import _core; print(_core.get_num_threads())"
    for count in ("1", "3"):
        assert in_new_process(code, OMP_NUM_THREADS=count) == count
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = _core.get_num_threads()
    try:
        _core.set_num_threads(2)
        with threadpoolctl.threadpool_limits(1):
            assert _core.get_num_threads() == 1
        assert _core.get_num_threads() == 2
    finally:
        _core.set_num_threads(before)


def test_grids_too_large_for_the_core_are_refused_before_anything_is_allocated():
    for shape in ((2**14, 2**14 + 1), (2**31 - 1, 2**31 - 1), (2, 2**30)):
        with pytest.raises(ValueError, match="2\\^28"):
            _core.GridForm(*shape, 1e-3, 1e-3, 0.3, 0.4, False)
    _core.GridForm(2**14, 2**14, 1e-3, 1e-3, 0.3, 0.4, False)
    with pytest.raises(TypeError):
        _core.GridForm(2**31, 2, 1e-3, 1e-3, 0.3, 0.4, False)


def pools_of_a_worker(task):
    import threadpoolctl

    solver = ef.ElasticForm(ef.Grid((9, 9), (1e-3, 1e-3)), ef.PlaneStress(0.4)).solver
    np.linalg.eigh(np.eye(9)), solver(np.ones(81), np.arange(162).reshape(2, 81) > 20)
    return os.getpid(), _core.get_num_threads(), [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def test_jobs_have_one_thread_each_and_no_more_processes_than_processors():
    pytest.importorskip("threadpoolctl")
    found = list(in_processes(pools_of_a_worker, range(8), 1000))
    assert len(found) == 8 and len({pid for pid, *_ in found}) <= processors()
    assert all(threads == 1 and pools and set(pools) == {1} for _, threads, pools in found)


def members_and_threads(count):
    with thread_pool(count) as pool:
        return sum(pool.map(lambda _: _core.get_num_threads(), range(count)))


def test_members_side_by_side_have_one_thread_each():
    before = _core.get_num_threads()
    try:
        _core.set_num_threads(2)
        assert threads(100, 8) == 2 and members_and_threads(2) == 2 and _core.get_num_threads() == 2
    finally:
        _core.set_num_threads(before)


def mostly_scratch(count, dtype, kept):
    """An array whose pages are the same two megabytes of memory, but for those around the kept places."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    unit, size = 1 << 21, np.dtype(dtype).itemsize * count
    units = -(-size // unit)
    own = {place * np.dtype(dtype).itemsize // unit + k for place in kept for k in (-1, 0, 1)}
    file = os.memfd_create("scratch")
    os.truncate(file, unit)
    both, shared, fixed, private = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, 0x10, mmap.MAP_PRIVATE
    start = libc.mmap(None, units * unit, 0, private | mmap.MAP_ANONYMOUS, -1, 0)
    for k in range(units):
        flags, source = (private | mmap.MAP_ANONYMOUS, -1) if k in own else (shared, file)
        assert libc.mmap(start + k * unit, unit, both, flags | fixed, source, 0) == start + k * unit
    os.close(file)
    return np.frombuffer((ctypes.c_char * size).from_address(start), dtype)


@pytest.mark.slow
@pytest.mark.skipif("ELASTOFAST_LARGE" not in os.environ, reason="takes 2 GB: ELASTOFAST_LARGE=1 runs it")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped in Linux's way")
def test_matrices_of_more_than_2_31_entries_are_right():
    """Without the memory for one: 1.5 GB in place of 10."""
    n, small = 7725, (7, 7)
    counts = np.full((n, n), 18)
    counts[[0, -1]] = counts[:, [0, -1]] = 12
    counts[np.ix_([0, -1], [0, -1])] = 8
    starts = np.zeros(2 * n * n + 1, np.int64)
    np.cumsum(np.concatenate([counts.ravel()] * 2), out=starts[1:])
    assert starts[-1] > 2**31
    places = [0, 2**31 - 20_000, 2**31, 2**31 + 20_000, int(starts[-1]) - 1]
    values = mostly_scratch(int(starts[-1]), np.float32, places)
    form = _core.GridForm(n, n, 1e-3, 1e-3, 0.3, 0.4, False)
    form.stiffness_values(np.ones(n * n, np.float32), starts, values)
    # a row has the entries of a node that lies alike in a small grid
    matrix = ef.ElasticForm(ef.Grid(small, (1e-3, 1e-3)), ef.PlaneStress(0.3)).stiffness(np.ones(small, np.float32))
    other, own = _core.GridForm(*small, 1e-3, 1e-3, 0.3, 0.4, False), np.empty(matrix.nnz, np.float32)
    other.stiffness_values(np.ones(49, np.float32), matrix.indptr.astype(np.int64), own)
    for place in places:
        row = min(int(np.searchsorted(starts, place, "right")) - 1, 2 * n * n - 1)
        k, (j, i) = row // (n * n), divmod(row % (n * n), n)
        alike = [min(a, 3) if a < n - 3 else a - n + 7 for a in (j, i)]
        first, end = matrix.indptr[49 * k + 7 * alike[0] + alike[1] :][:2]
        np.testing.assert_array_equal(values[starts[row] : starts[row + 1]], own[first:end])
