"""Open and unmeasured displacements: what their elimination costs, and what must not influence the result."""

import numpy as np
import pytest

import elastofast as ef
from elastofast.errors import SolveError
from elastofast.inversion.initial import homogeneous
from elastofast.misfit.covariance import NoiseCovariance
from elastofast.misfit.fidelity import Fidelity

SIZE = 32e-3
LAWS = {"plane stress": ef.PlaneStress(0.495), "plane strain": ef.PlaneStrain(0.495)}


def square(n):
    return ef.Grid((n, n), (SIZE / (n - 1),) * 2)


def disc(grid, inside=4e4, outside=1e4, radius=6e-3):
    return np.where(np.hypot(*(grid.points.T - SIZE / 2)).reshape(grid.shape) < radius, inside, outside)


def edges(grid, kind):
    """Open dofs: the bottom alone, or all edges."""
    is_open = np.zeros((2, *grid.shape), bool)
    is_open[:, -1] = True
    if kind == "all":
        is_open[:, 0] = is_open[:, :, 0] = is_open[:, :, -1] = True
    return is_open


def measure(grid, law, kind, snr, axial_only=False, seed=0, **changes):
    """A disc under pressure, with open dofs; the force is known unless all edges are open."""
    pressed = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, law), disc(grid), pressed)
    is_open = edges(grid, kind)
    load = ef.Boundary(open=is_open, force=None if kind == "all" else np.where(is_open, 0, pressed.force))
    std = np.sqrt(np.mean(u**2)) * 10 ** (-snr / 20)
    u = u + std * np.random.default_rng(seed).standard_normal(u.shape)
    arguments = {"displacement": u, "displacement_std": np.array([std, np.inf if axial_only else std])} | changes
    return ef.Measurement(grid, law, load, **arguments)


def error(result, grid):
    truth = disc(grid)
    if result.relative:
        truth = truth / np.exp(np.log(truth).mean())
    return np.linalg.norm(result.modulus - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["bottom", "all"])
@pytest.mark.parametrize(("lateral", "most"), [(1, 16), (10, 30), (np.inf, 90)])
def test_iterations_do_not_grow_with_the_size(law, kind, lateral, most):
    found = []
    for n in (17, 33, 65):
        grid = square(n)
        form, load = ef.ElasticForm(grid, LAWS[law]), ef.Boundary(open=edges(grid, kind))
        std = np.array([1e-6, 1e-6 * lateral])
        noise = np.random.default_rng(0).standard_normal((2, *grid.shape)) * np.minimum(std, 1e-3)[:, None, None]
        gamma = NoiseCovariance(form, disc(grid), load, std)
        found.append(gamma.solve(np.where(load.loaded, form.force(disc(grid), noise), 0.0), rtol=1e-4).iterations)
    assert max(found) <= most and found[-1] <= 1.6 * found[0] + 2


@pytest.mark.parametrize("kind", ["bottom", "all"])
def test_what_is_stored_where_nothing_was_measured_has_no_influence(kind):
    grid, rng = square(17), np.random.default_rng(1)
    plain = measure(grid, LAWS["plane stress"], kind, 35)
    std = np.where(rng.random((2, *grid.shape)) < 0.15, np.inf, plain.displacement_std)
    other = np.where(np.isinf(std), 1e-3 * rng.standard_normal(std.shape), plain.displacement)
    found = [
        Fidelity(measure(grid, LAWS["plane stress"], kind, 35, displacement=u, displacement_std=std))(disc(grid))
        for u in (plain.displacement, other)
    ]
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", ["bottom", "all"])
@pytest.mark.parametrize("std", ["even", "axial only"])
def test_a_rigid_motion_has_no_influence(kind, std):
    """A shift by 10 mm and a turn by 0.1 (to first order), of a field of 0.1 mm."""
    grid = square(17)
    m = measure(grid, LAWS["plane stress"], kind, 35, axial_only=std == "axial only")
    z, y = grid.points.T.reshape(2, *grid.shape) - SIZE / 2
    moved = m.displacement + np.stack([0.01 - 0.1 * y, -0.02 + 0.1 * z])
    arguments = {"displacement": moved, "displacement_std": m.displacement_std}
    other = measure(grid, LAWS["plane stress"], kind, 35, **arguments)
    x = 1.1 * disc(grid)
    (j, g), (k, h) = Fidelity(m)(x), Fidelity(other)(x)
    assert abs(j - k) < 1e-6 * j and np.linalg.norm(g - h) < 1e-4 * np.linalg.norm(g)


@pytest.mark.parametrize("snr", [20, 40, 60])
@pytest.mark.parametrize("n", [33, 65])
def test_the_homogeneous_start_is_not_biased_by_noise(n, snr):
    """Against the modulus of the homogeneous body that the data come from, with 5 % of the pixels missing."""
    grid, law = square(n), LAWS["plane stress"]
    pressed = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, law), np.full(grid.shape, 1e4), pressed)
    std = np.sqrt(np.mean(u**2)) * 10 ** (-snr / 20)
    rng = np.random.default_rng(2)
    u = u + std * rng.standard_normal(u.shape) + 2e-3
    holes = np.where(rng.random((2, *grid.shape)) < 0.05, np.inf, std)
    m = measure(grid, law, "bottom", snr, displacement=u, displacement_std=holes)
    assert abs(np.exp(homogeneous(m)[0]) / 1e4 - 1) < 0.1


@pytest.mark.parametrize("law", LAWS)
def test_one_component_with_all_edges_open_gives_nearly_the_map_of_both(law):
    grid = square(33)
    both, axial = (
        ef.reconstruct(measure(grid, LAWS[law], "all", 35, axial_only=only), prior="tv") for only in (False, True)
    )
    assert axial.status == "converged" and axial.relative
    assert error(axial, grid) <= 1.5 * error(both, grid)
    assert 0.8 < axial.chi2 < 1.2


@pytest.mark.parametrize("snr", [20, 30])
def test_an_open_bottom_costs_next_to_no_accuracy(snr):
    grid, law = square(33), LAWS["plane stress"]
    opened = measure(grid, law, "bottom", snr)
    load = ef.compression(grid, pressure=100.0)
    u = np.where(load.fixed, 0.0, opened.displacement)
    closed = ef.Measurement(grid, law, load, u, opened.displacement_std)
    found = [error(ef.reconstruct(m, prior="tv"), grid) for m in (opened, closed)]
    assert found[0] <= 1.1 * found[1]


def test_an_organ_in_an_image_counts_only_what_its_equations_contain():
    """A disc-shaped region of interest: the nodes outside are open and not measured, and chi2 is about one."""
    grid, law = square(33), LAWS["plane stress"]
    m = measure(grid, law, "all", 40)
    organ = np.hypot(*(grid.points.T - SIZE / 2)).reshape(grid.shape) < 13e-3
    inner = np.hypot(*(grid.points.T - SIZE / 2)).reshape(grid.shape) < 12e-3
    is_open = np.broadcast_to(~inner, (2, *grid.shape))
    std = np.where(organ, m.displacement_std, np.inf)
    roi = ef.Measurement(grid, law, ef.Boundary(open=is_open), m.displacement, std)
    result = ef.reconstruct(roi, prior="tv")
    assert abs(result.chi2 - 1) < 0.2
    x = result.modulus
    contrast = np.median(x[disc(grid, radius=4e-3) > 2e4]) / np.median(x[inner & (disc(grid, radius=8e-3) < 2e4)])
    assert abs(contrast / 4 - 1) < 0.15


def test_the_data_term_at_the_truth_is_as_large_as_the_noise_says():
    grid, law = square(33), LAWS["plane strain"]
    values = []
    for seed in range(8):
        fidelity = Fidelity(measure(grid, law, "all", 35, axial_only=True, seed=seed))
        values.append(2 * fidelity(disc(grid))[0] / fidelity.n_data)
    assert abs(np.mean(values) - 1) < 4 * np.sqrt(2 / fidelity.n_data / len(values)) + 0.02


def test_a_solve_that_fails_everywhere_ends_the_run_with_its_best_map(monkeypatch):
    grid = square(33)
    m = measure(grid, LAWS["plane stress"], "bottom", 35)
    evaluate, calls = Fidelity.evaluate, []

    def failing(self, x, rtol=None):
        calls.append(1)
        if len(calls) > 6:
            raise SolveError("no convergence")
        return evaluate(self, x, rtol)

    monkeypatch.setattr(Fidelity, "evaluate", failing)
    result = ef.reconstruct(m, prior="tv", weight=100.0)
    assert result.status == "failed" and "do not rely on it" in result.message
    assert np.isfinite(result.modulus).all() and len(result.history) > 0


def test_a_load_that_noise_hides_is_warned_about_and_one_that_it_contradicts_refused():
    grid, law = square(17), LAWS["plane stress"]
    load = ef.compression(grid, pressure=1e-3)
    u = np.where(load.fixed, 0, 1e-6 * np.random.default_rng(0).standard_normal((2, *grid.shape)))
    with pytest.warns(UserWarning, match="lost in the noise"):
        homogeneous(ef.Measurement(grid, law, load, u, 1e-6))
    pressed = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, law), np.full(grid.shape, 1e4), pressed)
    with pytest.raises(ValueError, match="goes against the load"):
        homogeneous(ef.Measurement(grid, law, pressed, -u, 1e-6))
    with pytest.raises(ValueError, match="nothing moved"):
        homogeneous(ef.Measurement(grid, law, pressed, 0 * u, 1e-6))


@pytest.mark.parametrize("blur", [1.0, 2.5])
def test_correlated_noise_costs_few_more_iterations(blur):
    """All edges open, noise blurred over one and two and a half nodes, at the homogeneous map."""
    grid = square(33)
    m = measure(grid, LAWS["plane stress"], "all", 35)
    length = 2 * blur * grid.spacing[0]
    x = np.full(grid.shape, 1e4)
    form = ef.ElasticForm(grid, LAWS["plane stress"])
    gamma = NoiseCovariance(form, x, m.load, 1e-6, displacement_correlation=length)
    r = np.where(m.load.loaded, form.force(x, m.displacement), 0.0)
    assert gamma.solve(r, rtol=1e-4).iterations <= 35
