"""Forward solves against solutions of the continuous equations."""

import numpy as np
import pytest
from scipy.spatial import Delaunay

from elastofast.boundary import Boundary
from elastofast.forward.form import ElasticForm
from elastofast.forward.solve import solve_forward
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress


def edges(geometry):
    """Mask (d, *node_shape) of the rectangle's boundary."""
    points = geometry.points
    low, high = points.min(axis=0), points.max(axis=0)
    edge = ((points < low + 1e-12) | (points > high - 1e-12)).any(axis=1).reshape(geometry.node_shape)
    return np.broadcast_to(edge, (2, *geometry.node_shape)).copy()


def norm(geometry, u):
    """Discrete L2 norm."""
    return np.sqrt(np.sum(geometry.node_weights * u.reshape(2, -1) ** 2))


# ---------------------------------------------------------------- order of convergence


def swirl(points):
    """Divergence-free displacement of the unit square, zero on its edges: curl of sin^2 sin^2, with its Laplacian
    and the strains 00 = -11 and 01. Its forces do not depend on the Poisson ratio's lambda."""
    (z, y), pi = points.T, np.pi

    def s(t):
        return np.sin(pi * t) ** 2

    def s1(t):
        return pi * np.sin(2 * pi * t)

    def s2(t):
        return 2 * pi**2 * np.cos(2 * pi * t)

    def s3(t):
        return -4 * pi**3 * np.sin(2 * pi * t)

    u = np.stack([s(z) * s1(y), -s1(z) * s(y)])
    laplacian = np.stack([s2(z) * s1(y) + s(z) * s3(y), -s3(z) * s(y) - s1(z) * s2(y)])
    return u, laplacian, s1(z) * s1(y), (s(z) * s2(y) - s2(z) * s(y)) / 2


def swirl_error(geometry, law):
    """Relative error for the smooth modulus 1 + sin(2 z + y) / 2 and the body force that belongs to it."""
    z, y = geometry.points.T
    x = 1 + 0.5 * np.sin(2 * z + y)
    slope = 0.5 * np.cos(2 * z + y)
    x0, x1 = 2 * slope, slope
    u, laplacian, e00, e01 = swirl(geometry.points)
    mu = law.lame_mu
    body = -2 * mu * np.stack([x0 * e00 + x1 * e01, x0 * e01 - x1 * e00]) - x * mu * laplacian
    fixed = edges(geometry)
    force = np.where(fixed, 0, (geometry.node_weights * body).reshape(fixed.shape))
    load = Boundary(fixed=fixed, force=force)
    found = solve_forward(ElasticForm(geometry, law), x.reshape(geometry.node_shape), load)
    return norm(geometry, found.reshape(2, -1) - u) / norm(geometry, u)


def unit_square(n, kind):
    grid = Grid((n, n + n // 2), (1 / (n - 1), 1 / (n + n // 2 - 1)))
    if kind == "grid":
        return grid
    points, h = grid.points.copy(), np.array(grid.spacing)
    inner = ~edges(grid)[0].ravel()
    points[inner] += np.random.default_rng(0).uniform(-0.2, 0.2, (inner.sum(), 2)) * h
    return Mesh(points, Delaunay(grid.points).simplices)


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        (PlaneStress(0.3), "grid"),
        (PlaneStress(0.495), "grid"),
        (PlaneStrain(0.3), "grid"),
        (PlaneStrain(0.495), "grid"),
        (PlaneStress(0.3), "mesh"),
        (PlaneStress(0.495), "mesh"),
        (PlaneStrain(0.495), "mesh"),
    ],
    ids=repr,
)
def test_displacement_is_of_second_order(law, kind):
    errors = [swirl_error(unit_square(n, kind), law) for n in (17, 33, 65)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (rates > 1.85).all() and errors[-1] < 5e-3, (errors, rates)


@pytest.mark.parametrize("kind", ["grid", "mesh"])
def test_plane_strain_does_not_lock(kind):
    """Nearly incompressible plane strain is as accurate as ordinary plane strain; ordinary linear triangles are not."""
    ordinary, factor = swirl_error(unit_square(33, kind), PlaneStrain(0.3)), {"grid": 1.5, "mesh": 2.0}[kind]
    for poisson in (0.495, 0.4999):
        assert swirl_error(unit_square(33, kind), PlaneStrain(poisson)) < factor * ordinary
    if kind == "mesh":
        mesh = unit_square(33, kind)
        locking = Mesh(mesh.points, mesh.cells, mean_dilatation=False)
        assert swirl_error(locking, PlaneStrain(0.4999)) > 10 * ordinary


# ---------------------------------------------------------------- circular inclusion


def inclusion_displacement(points, radius, law, inside, outside, stress):
    """Bonded circular inclusion at the origin of an infinite plate in uniaxial tension along axis 0.

    Complex potentials of Kolosov and Muskhelishvili (Muskhelishvili, Some Basic Problems of the Mathematical Theory
    of Elasticity, ch. 5; Goodier, J. Appl. Mech. 55, 1933), 2 mu (u0 + i u1) = kappa phi - z conj(phi') - conj(psi):
    outside phi = S/4 (z + A a^2/z), psi = -S/2 (z + B a^2/z + C a^4/z^3), inside phi = S/4 D z, psi = -S/2 E z.
    Equal displacement and traction on |z| = a give the constants. The strain inside is uniform (Eshelby).
    """
    nu = law.poisson
    kappa = (3 - nu) / (1 + nu) if law.name == "plane_stress" else 3 - 4 * nu
    mu1, mu2 = outside * law.lame_mu, inside * law.lame_mu
    d = (kappa + 1) / (2 + (kappa - 1) * mu1 / mu2)
    e = (kappa + 1) / (kappa + mu1 / mu2)
    a, b = 2 * (1 - e), 1 - d
    c = -a / 2
    z = points[:, 0] + 1j * points[:, 1]
    r2, r4 = radius**2, radius**4
    w = np.where(z == 0, 1, z)
    phi = stress / 4 * (w + a * r2 / w)
    slope = stress / 4 * (1 - a * r2 / w**2)
    psi = -stress / 2 * (w + b * r2 / w + c * r4 / w**3)
    out = (kappa * phi - w * slope.conj() - psi.conj()) / (2 * mu1)
    within = stress / 4 * ((kappa - 1) * d * z + 2 * e * z.conj()) / (2 * mu2)
    u = np.where(abs(z) < radius, within, out)
    return np.stack([u.real, u.imag])


def solve_inclusion(n, law, contrast):
    """Errors of the displacement that the inclusion causes and of the strain inside it, and how uniform that is."""
    width, radius, background, stress = 0.04, 0.008, 1e4, 100.0
    grid = Grid((n, n), (width / (n - 1),) * 2)
    points = grid.points - width / 2 - 1e-9  # no node exactly on the circle
    inside = (np.hypot(*points.T) < radius).reshape(grid.shape)
    x = np.where(inside, contrast * background, background)
    exact = inclusion_displacement(points, radius, law, contrast * background, background, stress)
    uniform = inclusion_displacement(points, radius, law, background, background, stress)
    exact, uniform = (u.reshape(2, n, n) for u in (exact, uniform))
    fixed = edges(grid)
    u = solve_forward(ElasticForm(grid, law), x, Boundary(fixed=fixed, displacement=np.where(fixed, exact, 0)))
    core = np.hypot(*points.T).reshape(n, n) < 0.7 * radius

    def strains(field):
        return np.stack([np.gradient(field[i], grid.spacing[i], axis=i)[core] for i in (0, 1)])

    found, expected = strains(u), strains(exact)
    displacement = norm(grid, u - exact) / norm(grid, exact - uniform)
    strain = np.abs(found.mean(axis=1) - expected.mean(axis=1)).max() / np.abs(expected[0]).mean()
    return displacement, strain, found[0].std() / np.abs(found[0].mean())


def test_inclusion_formula_is_continuous_and_becomes_uniform_tension():
    """The formula itself: continuous across the circle, uniaxial tension far away, and without contrast everywhere."""
    angles = np.linspace(0, 2 * np.pi, 50)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for law in (PlaneStress(0.3), PlaneStrain(0.45)):
        near = [inclusion_displacement(r * circle, 1.0, law, 5e4, 1e4, 1.0) for r in (1 - 1e-12, 1 + 1e-12)]
        np.testing.assert_allclose(*near, atol=1e-9 * np.abs(near[0]).max())
        nu = law.poisson
        axial, lateral = (1, -nu) if law.name == "plane_stress" else (1 - nu**2, -nu * (1 + nu))
        tension = (circle * np.array([axial, lateral])).T / 1e4
        np.testing.assert_allclose(inclusion_displacement(circle, 0.5, law, 1e4, 1e4, 1.0), tension, atol=1e-18)
        far = inclusion_displacement(1e4 * circle, 1.0, law, 5e4, 1e4, 1.0) / 1e4
        np.testing.assert_allclose(far, tension, atol=1e-7 * np.abs(tension).max())


@pytest.mark.parametrize("law", [PlaneStress(0.3), PlaneStress(0.495), PlaneStrain(0.45), PlaneStrain(0.495)], ids=repr)
@pytest.mark.parametrize("contrast", [5.0, 0.2])
def test_displacement_and_strain_of_a_circular_inclusion_converge_to_the_exact_ones(law, contrast):
    errors = [solve_inclusion(n, law, contrast) for n in (65, 257)]
    displacement, strain, spread = errors[1]
    assert displacement < 0.012 and strain < 0.008 and spread < 0.008
    assert displacement < 0.5 * errors[0][0]
