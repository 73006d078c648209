"""Nearly incompressible bodies on meshes of triangles: ``python benchmarks/locking.py``.

Three tables for ordinary triangles and those with mean dilatation, of one diagonal, in union-jack pattern and
irregular: the error of the displacement against biquadratic elements (scikit-fem) and its order of convergence; how
many pressures no displacement feels, and the next inf-sup constant; and the error of maps that total variation makes of
the same data, relative to that of the map on a grid.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.spatial import Delaunay
from side_by_side import print_table

import elastofast as ef

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from quadratic import compressed, lattice, plates, simplices

EDGE = 0.03
PATTERNS = ("diagonal", "union jack", "irregular")


def bump(x, y):
    """A smooth modulus (Pa)."""
    return 1e4 * (1 + 3 * np.exp(-((x - 0.4 * EDGE) ** 2 + (y - 0.55 * EDGE) ** 2) / (2 * 5e-3**2)))


def disc(x, y):
    """A modulus with a jump (Pa)."""
    return np.where((x - EDGE / 2) ** 2 + (y - EDGE / 2) ** 2 < 6e-3**2, 4e4, 1e4)


def body(pattern, n, mean_dilatation=True):
    """A mesh of n x n nodes; those of an irregular one are moved, but for every fourth along both axes."""
    points = lattice(2, n, EDGE)
    if pattern != "irregular":
        return ef.Mesh(points, simplices((n, n), pattern), mean_dilatation)
    step = EDGE / (n - 1)
    free = ((points > 1e-9) & (points < EDGE - 1e-9)).all(axis=1) & (np.rint(points / step) % 4 != 0).any(axis=1)
    points = points + 0.3 * step * free[:, None] * np.random.default_rng(0).uniform(-1, 1, points.shape)
    cells = Delaunay(points).simplices
    flat = np.abs(np.linalg.det(points[cells[:, 1:]] - points[cells[:, :1]])) < 1e-6 * step**2
    return ef.Mesh(points, cells[~flat], mean_dilatation)


def load_on(geometry):
    """The supports of the reference."""
    fixed, values = (a.reshape(2, *geometry.node_shape) for a in plates(geometry.points, EDGE))
    return ef.Boundary(fixed=fixed, displacement=values)


def orders(poisson):
    """Rows of the first table."""
    sizes, law = (9, 17, 33, 65), ef.PlaneStrain(poisson)
    expected = compressed(law, bump, EDGE, sizes[-1])
    makers = {"grid": lambda n: ef.Grid((n, n), (EDGE / (n - 1),) * 2)}
    for pattern in PATTERNS:
        for mean in (True, False):
            makers[f"{pattern}, {'mean' if mean else 'ordinary'}"] = lambda n, p=pattern, m=mean: body(p, n, m)
    for name, make in makers.items():
        errors = []
        for n in sizes:
            geometry, step = make(n), (sizes[-1] - 1) // (n - 1)
            x = bump(*geometry.points.T).reshape(geometry.node_shape)
            u = ef.solve_forward(ef.ElasticForm(geometry, law), x, load_on(geometry)).reshape(2, n, n)[:, ::4, ::4]
            e = expected[:, :: 4 * step, :: 4 * step]
            errors.append(np.linalg.norm(u - e) / np.linalg.norm(e))
        order = np.log2(np.divide(errors[:-1], errors[1:]))
        yield [f"{poisson:g}", name, *(f"{e:.1e}" for e in errors), *(f"{o:.2f}" for o in order)]


def pressures(pattern, n):
    """A row of the second table: of a body whose boundary is held, with the energy norm of strain."""
    mesh = body(pattern, n)
    strain = ef.ElasticForm(body(pattern, n, False), ef.PlaneStrain(0.0)).stiffness(np.ones(mesh.n_nodes)).toarray()
    inside = np.flatnonzero(np.tile(((mesh.points > 1e-9) & (mesh.points < EDGE - 1e-9)).all(axis=1), 2))
    backend, weights = ef.ElasticForm(mesh, ef.PlaneStrain(0.4)).backend, np.zeros((mesh.n_nodes, 2, mesh.n_nodes))
    indptr, nodes = backend._neighbours
    weights[np.repeat(np.arange(mesh.n_nodes), np.diff(indptr)), :, nodes] = backend._volume_change_weights
    b = weights.reshape(mesh.n_nodes, -1)[:, inside]
    schur = b @ np.linalg.solve(strain[np.ix_(inside, inside)], b.T)
    values = np.linalg.eigvalsh(schur / np.sqrt(np.outer(mesh.node_weights, mesh.node_weights)))
    none = int((values < 1e-9).sum())
    return [pattern, str(n), str(none), f"{np.sqrt(values[none]):.4f}"]


def maps(poisson, n=49):
    """A row of the third table: the error on the grid and those of the meshes over it."""
    law, rng = ef.PlaneStrain(poisson), np.random.default_rng(0)
    u = compressed(law, disc, EDGE, n)
    std = 1e-2 * np.sqrt(np.mean(u**2))  # 40 dB
    u = u + std * rng.standard_normal(u.shape)
    grid, errors = ef.Grid((n, n), (EDGE / (n - 1),) * 2), []
    truth = disc(*grid.points.T)
    truth = truth / np.exp(np.log(truth).mean())
    for geometry in (grid, *(body(p, n, mean) for mean in (True, False) for p in PATTERNS[:2])):
        m = ef.Measurement(geometry, law, load_on(geometry), u.reshape(2, *geometry.node_shape), std)
        x = ef.reconstruct(m, prior="tv").modulus.ravel()
        errors.append(np.linalg.norm(x - truth) / np.linalg.norm(truth))
    return [f"{poisson:g}", f"{errors[0]:.3f}", *(f"{e / errors[0]:.2f}" for e in errors[1:])]


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--poisson", type=float, nargs="*", default=[0.3, 0.45, 0.49, 0.495, 0.499])
    options = parser.parse_args()
    rows = [row for poisson in options.poisson for row in orders(poisson)]
    print_table(["Poisson", "cells", "9", "17", "33", "65 nodes", "order", "", ""], rows)
    print_table(
        ["cells", "nodes", "unfelt pressures", "inf-sup"], [pressures(p, n) for p in PATTERNS for n in (9, 17, 25)]
    )
    heads = [f"{p}, {kind}" for kind in ("mean", "ordinary") for p in PATTERNS[:2]]
    print_table(["Poisson", "grid", *heads], [maps(poisson) for poisson in options.poisson])


if __name__ == "__main__":
    main()
