"""What a measurement can say about the modulus, against dense algebra and cases whose answer is known."""

import numpy as np
import pytest
from dense import dense_psi

import elastofast as ef

GRID = ef.Grid((9, 8), (1e-3, 1e-3))
LAW = ef.PlaneStress(0.4)
TRUTH, _ = ef.inclusion(GRID, (4e-3, 3e-3), 2e-3, modulus=30e3, background=10e3)


def scan(load, std=1e-7, force_std=0.0):
    u = ef.solve_forward(ef.ElasticForm(GRID, LAW), TRUTH, ef.compression(GRID, pressure=100.0))
    return ef.Measurement(GRID, LAW, load, np.where(load.fixed, load.displacement, u), std, force_std)


def open_edges():
    edges = np.ones((2, *GRID.shape), bool)
    edges[:, 1:-1, 1:-1] = False
    return ef.Boundary(open=edges)


def lateral_missing(std=1e-7):
    return np.stack([np.full(GRID.shape, std), np.full(GRID.shape, np.inf)])


@pytest.mark.parametrize("force_std", [0.0, 1e-3])
def test_standard_deviations_are_those_of_the_dense_covariance(force_std):
    m = scan(ef.compression(GRID, pressure=100.0), force_std=force_std)
    found = ef.diagnose(m)
    fidelity, kept, psi = ef.Fidelity(m), m.load.loaded.ravel(), dense_psi(GRID, LAW)
    x = np.full(GRID.n_nodes, 1 / fidelity.homogeneous_compliance()[0])
    point = np.asarray(fidelity.evaluate(x).displacement).ravel()
    stiffness = np.einsum("n,nij->ij", x, psi)
    gamma = 1e-14 * stiffness @ np.diag((~m.load.fixed).ravel().astype(float)) @ stiffness.T
    gamma = (gamma + force_std**2 * np.eye(len(gamma)))[np.ix_(kept, kept)]
    sensitivity = np.einsum("nij,j->in", psi, point)[kept] * x
    hessian = sensitivity.T @ np.linalg.solve(gamma, sensitivity)
    flat = found.variations.reshape(len(found.std), -1)
    within = flat @ hessian @ flat.T
    np.testing.assert_allclose(np.diag(within) ** -0.5, found.std, rtol=1e-4)
    scale = np.sqrt(np.outer(np.diag(within), np.diag(within)))
    assert np.abs(within / scale - np.eye(len(flat))).max() < 1e-4  # independent of each other
    weights = GRID.node_weights.ravel() / GRID.node_weights.sum()
    np.testing.assert_allclose((flat**2) @ weights, 1.0)
    assert len(found.std) == 21 and (np.diff(found.std) <= 0).all() and not found.relative


def test_without_a_force_the_scale_is_no_variation_and_columns_cannot_be_told_apart():
    """Under plates that approach each other, a homogeneous column keeps its strain whatever its modulus is."""
    found = scan(ef.compression(GRID, strain=0.01)).diagnose()
    assert found.relative and len(found.std) == 20 and found.determined == 15
    assert np.isinf(found.std[:5]).all() and found.std[5] < 0.1
    for column in found.variations[:5]:
        np.testing.assert_allclose(column, np.broadcast_to(column[:1], column.shape), atol=1e-3)
    text = str(found)
    assert found.rank == 15 and not found.motions and "rank           15 of 20" in text
    assert "relative, since no force is known" in text and "15 of 20" in text
    assert "lateral: not at all" in text


def test_what_is_missing_makes_variations_less_certain():
    everything, one = (ef.diagnose(scan(open_edges(), std)) for std in (1e-7, lateral_missing()))
    assert (one.std > everything.std).all() and one.std[0] > 5 * everything.std[0]
    assert one.measured == GRID.n_nodes and everything.measured == 2 * GRID.n_nodes
    assert len(everything.motions) == 3 and "translation along axis 1 (lateral), rotation without" in str(everything)
    doubled = ef.diagnose(scan(open_edges(), 2e-7))
    np.testing.assert_allclose(doubled.std, 2 * everything.std, rtol=0.05)


def test_noise_that_hides_everything_is_said():
    with pytest.warns(UserWarning, match="lost in the noise"):
        found = ef.diagnose(scan(ef.compression(GRID, pressure=100.0), std=1.0))
    assert found.determined == 0 and "determine nothing about the modulus" in str(found)


@pytest.mark.parametrize("dim", [2, 3])
def test_meshes(dim):
    meshed = {2: 10, 3: 4}[dim]
    axes = np.meshgrid(*[np.linspace(0, 1e-2, meshed)] * dim, indexing="ij")
    points = np.stack([a.ravel() for a in axes], axis=1)
    from scipy.spatial import Delaunay

    cells = Delaunay(points + 1e-6 * np.random.default_rng(0).normal(size=points.shape)).simplices
    edges = points[cells[:, 1:]] - points[cells[:, :1]]
    cells = cells[np.abs(np.linalg.det(edges)) > 1e-3 * (1e-2 / meshed) ** dim]
    mesh = ef.Mesh(points, cells)
    law = LAW if dim == 2 else ef.Solid(0.4)
    m = ef.simulate(mesh, law, ef.compression(mesh, pressure=100.0), np.full(len(points), 1e4))
    found = ef.diagnose(m)
    assert found.variations.shape == ({2: 21, 3: 56}[dim], len(points)) and np.isfinite(found.std[-10:]).all()
    assert "axial" in str(found) or "lateral" in str(found)


def test_what_goes_wrong_is_said():
    with pytest.raises(TypeError, match="measurement must be a Measurement"):
        ef.diagnose(TRUTH)
    fixed = np.zeros((2, *GRID.shape), bool)
    fixed[0, -1] = True
    with pytest.raises(ValueError, match=r"free to move without deforming: translation along axis 1"):
        ef.diagnose(scan(ef.Boundary(fixed=fixed)))
