"""The batched conjugate gradients against dense solves, and what sets them apart from a library's."""

import numpy as np
import pytest

from elastofast.forward.krylov import conjugate_gradients, restarted_conjugate_gradients

N = 20


def systems(seed=0):
    """Positive definite matrices (3, N, N) of conditions 1.1, 10 and 1000, and right-hand sides (3, N)."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((3, N, N)))[0]
    eigenvalues = np.stack([np.linspace(1, 1.1, N), np.linspace(1, 10, N), np.geomspace(1, 1000, N)])
    return basis * eigenvalues[:, None] @ basis.transpose(0, 2, 1), rng.standard_normal((3, N))


def product(matrices):
    return lambda v: (matrices @ v[..., None])[..., 0]


def solved(a, b):
    return np.linalg.solve(a, b[..., None])[..., 0]


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize(
    "stop", [{"rtol": 1e-10}, {"preconditioned_rtol": 1e-10}, {"rtol": 1e-10, "preconditioned_rtol": 1e-10}]
)
def test_every_member_is_solved(guess, stop):
    a, b = systems()
    x0 = np.random.default_rng(1).standard_normal(b.shape) if guess else None
    found = conjugate_gradients(product(a), np.copy, b, x0, maxiter=200, **stop)
    np.testing.assert_allclose(found.value, solved(a, b), rtol=1e-6, atol=1e-8)
    assert (found.preconditioned_residual is None) == ("preconditioned_rtol" not in stop)


def test_fields_of_two_axes_are_one_system_with_two_axes_of_it():
    a, b = systems()
    flat = conjugate_gradients(product(a), np.copy, b, maxiter=5, rtol=1e-10).value
    fields = conjugate_gradients(
        lambda v: product(a)(v.reshape(3, N)).reshape(v.shape),
        np.copy,
        b.reshape(3, 2, N // 2),
        maxiter=5,
        rtol=1e-10,
        axes=2,
    ).value
    np.testing.assert_allclose(fields.reshape(3, N), flat, rtol=1e-10, atol=1e-13)


def test_a_member_that_has_ended_stays_where_it_is():
    a, b = systems()
    together = conjugate_gradients(product(a), np.copy, b, maxiter=200, rtol=1e-3)
    alone = [
        conjugate_gradients(product(a[k : k + 1]), np.copy, b[k : k + 1], maxiter=200, rtol=1e-3) for k in range(3)
    ]
    assert together.iterations == max(one.iterations for one in alone) > min(one.iterations for one in alone)
    np.testing.assert_allclose(together.value, np.concatenate([one.value for one in alone]), rtol=1e-10, atol=1e-12)


def test_zero_right_hand_sides_have_zero_solutions_whatever_the_guess():
    a, b = systems()
    b[1] = 0
    found = restarted_conjugate_gradients(product(a), np.copy, b, np.ones_like(b), maxiter=200, rtol=1e-9)
    assert not found.value[1].any() and found.residual[1] == 0
    assert (found.residual <= 1e-9).all()


def test_a_preconditioner_is_not_applied_to_a_residual_that_is_small_enough():
    """With the inverse as preconditioner, one application is a solve of its own."""
    a, b = systems()
    calls = []

    def inverse(r):
        calls.append(1)
        return solved(a, r)

    found = restarted_conjugate_gradients(product(a), inverse, b, maxiter=20, rtol=1e-8)
    assert found.iterations == len(calls) == 1


def test_restarts_reach_a_true_residual_that_one_run_does_not():
    """An operator that is perturbed during the first iterations lets the residual of the recursion drift."""
    a, b = systems()
    exact, count = product(a), iter(range(1000))

    def drifting(v):
        return exact(v) * (1 + 1e-4 * (0 < next(count) < 20))

    found = restarted_conjugate_gradients(drifting, np.copy, b, maxiter=500, rtol=1e-8)
    assert (np.linalg.norm(b - exact(found.value), axis=-1) <= 1.01e-8 * np.linalg.norm(b, axis=-1)).all()
    count = iter(range(1000))
    once = restarted_conjugate_gradients(drifting, np.copy, b, maxiter=500, rtol=1e-8, runs=1)
    assert (once.residual > 1e-8).any()


def test_negative_curvature_ends_a_member_before_the_step():
    a, b = systems()
    a[1] -= 3 * np.eye(N)
    found = conjugate_gradients(product(a), np.copy, b, maxiter=200, rtol=1e-10).value
    np.testing.assert_allclose(found[::2], solved(a, b)[::2], rtol=1e-6, atol=1e-8)
    assert np.vdot(found[1], b[1]) > 0 and np.vdot(found[1], a[1] @ found[1]) > 0
