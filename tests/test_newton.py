"""Conjugate gradients of the inner steps against dense solves."""

import device
import numpy as np

from elastofast.misfit.curvature import truncated_newton_step

N = 12


def systems():
    """Positive definite matrices (3, N, N) of unlike conditions, right-hand sides, and preconditioners."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((3, N, N)))[0]
    eigenvalues = np.stack([np.linspace(1, 1.1, N), np.linspace(1, 10, N), np.geomspace(1, 100, N)])
    matrices = basis * eigenvalues[:, None] @ basis.transpose(0, 2, 1)
    return matrices, rng.standard_normal((3, N)), np.exp(0.3 * rng.standard_normal((3, N)))


def product(matrices):
    return lambda v: (matrices * v[:, None, :]).sum(axis=-1)


def test_truncated_newton_steps_solve_every_system_of_a_batch():
    a, b, diagonal = systems()
    found = truncated_newton_step(product(a), b, diagonal, steps=60, tolerance=1e-10)
    np.testing.assert_allclose(found, np.linalg.solve(a, b[..., None])[..., 0], rtol=1e-7, atol=1e-8)


def test_members_do_not_wait_for_each_other():
    a, b, diagonal = systems()
    for steps, tolerance in ((2, 1e-8), (40, 0.05)):
        together = truncated_newton_step(product(a), b, diagonal, steps=steps, tolerance=tolerance)
        for k in range(3):
            one = slice(k, k + 1)
            alone = truncated_newton_step(product(a[one]), b[one], diagonal[one], steps=steps, tolerance=tolerance)
            np.testing.assert_allclose(together[one], alone, rtol=1e-12)


def test_first_step_is_the_line_minimum_along_the_preconditioned_gradient():
    a, b, diagonal = systems()
    p = b / diagonal
    length = (b * p).sum(-1) / np.einsum("bi,bij,bj->b", p, a, p)
    found = truncated_newton_step(product(a), b, diagonal, steps=1, tolerance=0.1)
    np.testing.assert_allclose(found, length[:, None] * p, rtol=1e-12)


def test_negative_curvature_ends_a_member():
    a, b, diagonal = systems()
    a[1] *= -1
    found = truncated_newton_step(product(a), b, diagonal, steps=60, tolerance=1e-10)
    assert np.all(found[1] == 0)
    np.testing.assert_allclose(found[::2], np.linalg.solve(a, b[..., None])[::2, :, 0], rtol=1e-7, atol=1e-8)


def test_truncated_newton_steps_on_a_device_are_those_of_the_cpu(monkeypatch):
    put, get = device.install(monkeypatch)
    a, b, diagonal = systems()
    found = truncated_newton_step(product(put(a)), put(b), put(diagonal), steps=9, tolerance=1e-3)
    expected = truncated_newton_step(product(a), b, diagonal, steps=9, tolerance=1e-3)
    np.testing.assert_allclose(get(found), expected, rtol=1e-9)
