"""Checks of an installation against what is known without it: ``elastofast verify``.

Every check compares with mathematics (a patch test, an order of convergence, an identity, statistics), with a plain
dense computation, or with stored values. Limits are ten to a hundred times what was measured on x86-64 with GCC, and
below what an error of one in a million in a kernel causes where a check is exact.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .boundary import Boundary, compression
from .forward.form import ElasticForm
from .forward.solve import solve_forward
from .geometry import Grid, Mesh
from .laws import PlaneStrain, PlaneStress
from .measurement import Measurement
from .misfit.fidelity import Fidelity
from .phantoms import inclusion
from .simulation import simulate

__all__ = ["CHECKS", "Check", "verify"]

LAWS = (PlaneStress(0.495), PlaneStrain(0.45))
STANDARD_DEVIATIONS = 4.5  # of chi2: seven in a million right installations would exceed them, and draws are fixed
DRAWS = 20
# The error of log x that the critic of the package sees in `_critic_map` at some of its nodes, with its weights in
# double precision; tests/test_verification.py computes it again.
CRITIC_SHAPE = (96, 96)
CRITIC_NODES = ((10, 12), (30, 40), (48, 48), (60, 35), (85, 90))
CRITIC_VALUES = (0.00997724, -0.17093978, -0.02316291, -0.02012243, 0.00204923)


@dataclass(frozen=True)
class Check:
    """What came of a check.

    Attributes
    ----------
    name : str
    figure : float or None
        What was measured, an error; None if the check was skipped or ended with an error.
    limit : float
        The largest figure that passes.
    note : str
        Why it was skipped, or the error.
    skipped : bool
    seconds : float
    """

    name: str
    figure: float | None
    limit: float
    note: str = ""
    skipped: bool = False
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to the limit; a skipped check did not fail."""
        return self.skipped or (self.figure is not None and self.figure <= self.limit)


class _Skipped(Exception):
    """A check cannot be made here; the message says why."""


def verify() -> Iterator[Check]:
    """Make all checks, one after the other.

    Yields
    ------
    Check
    """
    for name, limit, measure in CHECKS:
        begun = time.perf_counter()
        figure, note, skipped = None, "", False
        try:
            figure = float(measure())
        except _Skipped as reason:
            note, skipped = str(reason), True
        except Exception as error:  # whatever a broken build raises, the check has failed
            note = f"{type(error).__name__}: {error}"
        yield Check(name, figure, limit, note, skipped, time.perf_counter() - begun)


def _needs(package, use):
    if importlib.util.find_spec(package) is None:
        raise _Skipped(f"{package} is not installed, needed for {use}")


def _edges(geometry):
    """Mask (d, *node_shape) of the boundary of a rectangle."""
    points = geometry.points
    low, high = points.min(axis=0), points.max(axis=0)
    size = (high - low).max()
    edge = ((points < low + 1e-9 * size) | (points > high - 1e-9 * size)).any(axis=1).reshape(geometry.node_shape)
    return np.broadcast_to(edge, (geometry.dim, *geometry.node_shape)).copy()


def _apart(found, expected) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def _grid():
    return Grid((17, 14), (1e-3, 1.5e-3))


def _mesh():
    """Triangles, of two in each cell of a grid."""
    _needs("numba", "meshes")
    grid = _grid()
    index = np.arange(grid.n_nodes).reshape(grid.shape)
    a, b, c, d = (own.ravel() for own in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    return Mesh(grid.points, np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)]))


def _patch(geometry):
    """A body of one modulus that is stretched evenly: no force inside, and the exact resultant on its upper edge."""
    worst = 0.0
    strain = np.array([[-0.01, 0.004], [0.002, 0.007]])
    points, x = geometry.points, np.full(geometry.node_shape, 3e4)
    for law in LAWS:
        u = (strain @ points.T).reshape(2, *geometry.node_shape)
        even = (strain + strain.T) / 2
        stress = 3e4 * (law.lame_lambda * np.trace(even) * np.eye(2) + 2 * law.lame_mu * even)
        form, edge = ElasticForm(geometry, law), _edges(geometry)
        force = form.force(x, u)
        top = points[:, 0].reshape(geometry.node_shape) < 1e-9
        resultant = -stress[:, 0] * np.ptp(points[:, 1])  # of the traction on the upper edge, whose normal is -e_0
        # the corners also carry half a cell's share of the tractions on the sides, which cancel out
        found = force.reshape(2, -1)[:, top.ravel()].sum(axis=1)
        worst = max(worst, _apart(found, resultant), np.abs(force[~edge]).max() / np.abs(force).max())
        load = Boundary(fixed=edge, displacement=np.where(edge, u, 0.0))
        worst = max(worst, _apart(solve_forward(form, x, load, rtol=1e-13), u))
    return worst


def _order():
    """How far the observed order of convergence is from two, for a smooth solution in two dimensions."""
    worst = 0.0
    for law in LAWS:
        errors = []
        for n in (17, 33, 65):
            grid = Grid((n, n), (1 / (n - 1),) * 2)
            z, y = grid.points.T
            s, c = (lambda t: np.sin(np.pi * t) ** 2), (lambda t: np.cos(2 * np.pi * t))
            s1, s3 = (lambda t: np.pi * np.sin(2 * np.pi * t)), (lambda t: -4 * np.pi**3 * np.sin(2 * np.pi * t))
            u = np.stack([s(z) * s1(y), -s1(z) * s(y)])  # free of divergence, zero on the edges
            s2 = 2 * np.pi**2
            laplacian = np.stack([s2 * c(z) * s1(y) + s(z) * s3(y), -s3(z) * s(y) - s1(z) * s2 * c(y)])
            fixed = _edges(grid)
            force = np.where(fixed, 0.0, (-law.lame_mu * grid.node_weights.ravel() * laplacian).reshape(fixed.shape))
            found = solve_forward(ElasticForm(grid, law), np.ones(grid.shape), Boundary(fixed=fixed, force=force))
            errors.append(np.linalg.norm(found.reshape(2, -1) - u) / np.linalg.norm(u))
        worst = max(worst, abs(2 - np.log2(errors[1] / errors[2])))
    return worst


def _series():
    """The same for a modulus that grows with depth, under pressure: at a Poisson ratio of zero exact by an integral."""
    errors = []
    for n in (17, 33, 65):
        grid = Grid((n, n), (1 / (n - 1),) * 2)
        z = grid.points[:, 0].reshape(grid.shape)
        found = solve_forward(ElasticForm(grid, PlaneStress(0.0)), np.exp(2 * z), compression(grid, pressure=0.1))
        errors.append(np.abs(found[0] - 0.05 * (np.exp(-2 * z) - np.exp(-2.0))).max())
    return abs(2 - np.log2(errors[1] / errors[2]))


def _adjoint(geometry, dtype=np.float64):
    """The kernels of the trilinear form a(x; u, v) against each other, and against its sparse matrices."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for law in LAWS:
        form = ElasticForm(geometry, law)
        x = rng.uniform(1.0, 4.0, form.node_shape).astype(dtype)
        u, v = (rng.normal(size=form.dof_shape).astype(dtype) for _ in range(2))
        force, sensitivity = form.force(x, u), form.sensitivity(u, v)
        size = float(np.linalg.norm(force) * np.linalg.norm(v))
        values = [np.vdot(v, force), np.vdot(u, form.force(x, v)), np.vdot(x, sensitivity)]
        values += [v.ravel() @ (form.stiffness(x) @ u.ravel()), v.ravel() @ (form.contraction(u) @ x.ravel())]
        worst = max(worst, float(np.ptp(np.array(values, dtype=np.float64))) / size)
    return worst


def _scan(load_of=lambda grid: compression(grid, pressure=100.0)):
    """A small measurement with noise, and a modulus that is not the true one."""
    grid = Grid((8, 7), (1e-3, 1e-3))
    truth, _ = inclusion(grid, (4e-3, 3e-3), 2e-3, modulus=3e4, background=1e4)
    m = simulate(grid, LAWS[0], compression(grid, pressure=100.0), truth, snr=30.0)
    other = Measurement(grid, m.law, load_of(grid), m.displacement, m.level)
    return other, truth * np.exp(0.2 * np.random.default_rng(1).normal(size=grid.shape))


def _all_open(grid):
    return Boundary(open=_edges(grid))


def _gradient():
    """The gradient of the data term along a line, by central differences and Richardson's extrapolation."""
    worst = 0.0
    for load in (lambda grid: compression(grid, pressure=100.0), _all_open):
        m, x = _scan(load)
        fidelity = Fidelity(m, rtol=1e-12)
        along = x * np.random.default_rng(2).normal(size=x.shape)
        slope = float((fidelity(x)[1] * along).sum())

        def difference(t, x=x, along=along, fidelity=fidelity):
            return (fidelity(x + t * along)[0] - fidelity(x - t * along)[0]) / (2 * t)

        coarse, fine = (difference(t) for t in (2e-3, 1e-3))
        worst = max(worst, abs((4 * fine - coarse) / 3 - slope) / abs(slope))
    return worst


def _gamma():
    """The data term against the smallest errors of displacement and force in equilibrium, by dense algebra."""
    worst = 0.0
    for force_std in (0.0, 2e-3):
        m, x = _scan()
        m = m.derived(force_std=force_std)
        form, rows, noisy = m.form, m.load.loaded.ravel(), (~m.load.fixed).ravel()
        stiffness = form.stiffness(x).toarray()
        residual = (m.load.force.ravel() - stiffness @ m.displacement.ravel())[rows]
        errors = np.hstack([stiffness[np.ix_(rows, noisy)] * m.level, -force_std * np.eye(rows.sum())])
        least = np.linalg.lstsq(errors, residual, rcond=None)[0]
        expected = 0.5 * float(least @ least)
        worst = max(worst, abs(Fidelity(m, rtol=1e-12)(x)[0] - expected) / expected)
    return worst


def _chi2():
    """chi2 at the true modulus, mean over noise draws, less one, in its standard deviations."""
    grid = Grid((25, 25), (1e-3, 1e-3))
    truth, _ = inclusion(grid, (12e-3, 10e-3), 5e-3, modulus=3e4, background=1e4)
    load = compression(grid, pressure=100.0)
    worst = 0.0
    for law in LAWS:
        chi2 = []
        for seed in range(DRAWS):
            fidelity = Fidelity(simulate(grid, law, load, truth, snr=35.0, seed=seed))
            chi2.append(2 * fidelity(truth)[0] / fidelity.n_data)
        worst = max(worst, abs(np.mean(chi2) - 1) / np.sqrt(2 / (fidelity.n_data * DRAWS)))
    return worst


def _critic_map():
    """A smooth modulus (pascals) with an inclusion, written as a formula so that it need not be stored."""
    i, j = np.indices(CRITIC_SHAPE)
    return 1e4 * np.exp(1.2 / (1 + np.exp((np.hypot(i - 44, j - 52) - 18) / 1.5)) + 0.1 * np.sin(i / 3) * np.cos(j / 4))


def critic_error(critic) -> np.ndarray:
    """The error of log x that a critic sees at some nodes of that map."""
    z = np.log(_critic_map()).reshape(1, -1)
    error = z - critic.target(z, CRITIC_SHAPE)
    return np.array([error.reshape(CRITIC_SHAPE)[node] for node in CRITIC_NODES])


def _critic():
    for package in ("torch", "safetensors"):
        _needs(package, "learned priors")
    from .priors.learned import Critic

    return _apart(critic_error(Critic.load()), np.array(CRITIC_VALUES))


def _gpu():
    """Products and solves on a GPU against those on the processor."""
    _needs("cupy", "GPUs")
    import cupy

    from .backend.device import device_of

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise _Skipped(f"no GPU: {error}") from None
    if not count:
        raise _Skipped("no GPU")
    if importlib.util.find_spec("elastofast._cuda") is None:
        raise _Skipped("elastofast._cuda is not built, see docs/gpu.md")
    worst = 0.0
    for law in LAWS:
        form = ElasticForm(Grid((65, 50), (1e-3, 1e-3)), law)
        x = np.random.default_rng(0).uniform(1e4, 4e4, form.node_shape)
        load = compression(form.geometry, pressure=100.0)
        u = solve_forward(form, x, load, rtol=1e-12)
        there = cupy.asarray(x)
        assert device_of(x=there).is_gpu
        worst = max(worst, _apart(solve_forward(form, there, load, rtol=1e-12).get(), u))
        worst = max(worst, _apart(form.force(there, cupy.asarray(u)).get(), form.force(x, u)))
    return worst


CHECKS: tuple[tuple[str, float, Callable[[], float]], ...] = (
    ("patch test, grid", 1e-9, lambda: _patch(_grid())),
    ("patch test, mesh", 1e-9, lambda: _patch(_mesh())),
    ("order of convergence less 2, smooth body force", 0.1, _order),
    ("order of convergence less 2, modulus growing with depth", 0.1, _series),
    ("adjoint identities, grid", 1e-12, lambda: _adjoint(_grid())),
    ("adjoint identities, grid, single precision", 1e-5, lambda: _adjoint(_grid(), np.float32)),
    ("adjoint identities, mesh", 1e-12, lambda: _adjoint(_mesh())),
    ("gradient against differences", 3e-7, _gradient),
    ("data term against the smallest errors in equilibrium", 1e-8, _gamma),
    (f"chi2 at the true modulus, {DRAWS} draws, in standard deviations from 1", STANDARD_DEVIATIONS, _chi2),
    ("the critic on a stored map", 1e-3, _critic),
    ("GPU against processor", 1e-9, _gpu),
)
