"""A Poisson ratio that is not known: derivatives of the data term by it, and its estimate."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import elastofast as ef
from elastofast.laws import LAWS, poisson_rate
from elastofast.misfit.free_poisson import FreePoisson, poisson_derivatives

GRID = ef.Grid((33, 33), (1e-3, 1e-3))
TRUTH, _ = ef.inclusion(GRID, (14e-3, 18e-3), 6e-3, modulus=40e3, background=12e3)


def triangles(n):
    """A square of n x n nodes, each cell cut in two."""
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, :-1].ravel(), i[1:, 1:].ravel()
    points = np.stack(np.meshgrid(*2 * [np.linspace(0, 32e-3, n)], indexing="ij"), -1).reshape(-1, 2)
    return ef.Mesh(points, np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)]))


def stated(m, poisson, **changes):
    """The measurement with another Poisson ratio stated."""
    return m.derived(law=type(m.law)(poisson), **changes)


def log_error(result, truth):
    away = np.log(result.modulus / truth)
    return np.sqrt(np.mean((away - result.relative * away.mean()) ** 2))


def cut_out(m):
    """The measurement with every edge open."""
    edge = np.ones((2, *m.geometry.shape), bool)
    edge[:, 1:-1, 1:-1] = False
    return stated(m, m.law.poisson, load=ef.Boundary(open=edge))


@pytest.mark.parametrize("poisson", [0.0, 0.3, 0.495, 0.4995])
def test_rates_of_the_lame_numbers(poisson):
    nu = poisson
    shear = -1 / (2 * (1 + nu) ** 2)
    solid = (1 + 2 * nu**2) / ((1 + nu) * (1 - 2 * nu)) ** 2
    for law in LAWS.values():
        rate = poisson_rate(law(nu))
        expected = (1 + nu**2) / (1 - nu**2) ** 2 if law is ef.PlaneStress else solid
        assert rate.lame_mu == pytest.approx(shear, rel=2e-8)
        assert rate.lame_lambda == pytest.approx(expected, rel=2e-8)


@pytest.mark.parametrize("law", [ef.PlaneStress, ef.PlaneStrain])
@pytest.mark.parametrize("poisson", [0.3, 0.499])
@pytest.mark.parametrize("kind", ["grid", "mesh", "open"])
def test_slope_and_curvature_of_the_data_term(law, poisson, kind):
    """Against differences of J, whose true curvature differs from that of Gauss and Newton by what the misfit adds."""
    geometry = triangles(13) if kind == "mesh" else ef.Grid((13, 13), (2e-3, 2e-3))
    p = geometry.points
    x = 12e3 * np.exp(0.3 * np.sin(300 * p[:, 0] + 200 * p[:, 1])).reshape(geometry.node_shape)
    m = ef.simulate(geometry, law(poisson), ef.compression(geometry, pressure=100.0), x, snr=40.0, seed=1)
    m = cut_out(m) if kind == "open" else m

    def differences(step):
        """First and second."""
        below, here, above = (ef.Fidelity(stated(m, poisson + k * step), rtol=1e-11)(1.01 * x)[0] for k in (-1, 0, 1))
        return (above - below) / (2 * step), (above - 2 * here + below) / step**2

    fidelity = ef.Fidelity(m, rtol=1e-10)
    moduli = 1.01 * x.reshape(1, -1)
    slope, curvature, _ = poisson_derivatives(fidelity, moduli, fidelity.evaluate(moduli))
    assert slope == pytest.approx(differences(1e-4 * (0.5 - poisson))[0], rel=1e-4, abs=1e-6 * curvature)
    if kind != "open":  # where a change of the ratio is hardly seen, the difference is too small
        assert curvature == pytest.approx(differences(0.03 * (0.5 - poisson))[1], rel=0.3)


@pytest.mark.parametrize("law", [ef.PlaneStress, ef.PlaneStrain])
def test_the_free_ratio_is_the_best_one_and_the_gradient_that_of_the_minimum(law):
    m = stated(ef.simulate(GRID, law(0.47), ef.compression(GRID, pressure=100.0), TRUTH, snr=30.0), 0.4)
    x = TRUTH.reshape(1, -1) * np.exp(0.1 * np.sin(np.arange(33 * 33) / 5))
    free = FreePoisson.of_batch([m], "exact", 1e-10)
    now = free.evaluate(x)
    best = minimize_scalar(
        lambda nu: ef.Fidelity(stated(m, nu), rtol=1e-10)(x.reshape(33, 33))[0],
        bounds=(0.3, 0.499),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert free.poisson == pytest.approx(best.x, abs=1e-3 * 0.1)
    assert now.value == pytest.approx(best.fun, rel=1e-6)
    direction = np.random.default_rng(0).normal(size=x.shape) * x
    ahead, behind = (free.evaluate(x + k * 1e-4 * direction).value for k in (1, -1))
    assert (now.gradient * direction).sum() == pytest.approx(float((ahead - behind).item() / 2e-4), rel=1e-2)


@pytest.mark.parametrize(
    ("law", "poisson", "kind"),
    [
        (ef.PlaneStress, 0.46, "pressure"),
        (ef.PlaneStrain, 0.495, "strain"),
        (ef.PlaneStrain, 0.499, "pressure"),
        (ef.PlaneStrain, 0.46, "mesh"),
    ],
)
def test_an_unknown_ratio_costs_little(law, poisson, kind):
    geometry = triangles(21) if kind == "mesh" else GRID
    p = geometry.points
    truth = np.where(np.hypot(p[:, 0] - 14e-3, p[:, 1] - 18e-3) < 6e-3, 40e3, 12e3).reshape(geometry.node_shape)
    load = ef.compression(geometry, **({"strain": 0.01} if kind == "strain" else {"pressure": 100.0}))
    m = ef.simulate(geometry, law(poisson), load, truth, snr=35.0, seed=1)
    known = ef.reconstruct(m, prior="tv")
    assert known.poisson == poisson and known.poisson_interval is None
    found = ef.reconstruct(stated(m, poisson - 0.03), prior="tv", poisson="estimate")
    low, high = found.poisson_interval
    assert found.poisson == pytest.approx(poisson, abs=0.003) and low <= poisson <= high and high - low < 0.02
    assert log_error(found, truth) < 1.2 * log_error(known, truth)
    assert "The Poisson ratio was estimated as" in found.message and found.chi2 < 1.1


def test_data_that_cannot_tell_the_ratio_are_warned_about():
    grid = ef.Grid((17, 17), (2e-3, 2e-3))
    load = ef.compression(grid, pressure=100.0)
    m = cut_out(ef.simulate(grid, ef.PlaneStress(0.45), load, np.full((17, 17), 1e4), snr=25.0))
    axial = np.stack([np.full(grid.shape, m.displacement_std[0, 0, 0]), np.full(grid.shape, np.inf)])
    with pytest.warns(UserWarning, match="the data cannot tell it, and 0.42 was used"):
        found = ef.reconstruct(stated(m, 0.42, displacement_std=axial), prior="tv", poisson="estimate")
    assert found.poisson == 0.42 and np.diff(found.poisson_interval) > 0.06
    assert "cannot tell" in found.message


def test_an_estimate_is_stored_and_shown(tmp_path, capsys):
    from elastofast.cli import main

    grid = ef.Grid((17, 17), (2e-3, 2e-3))
    m = ef.simulate(grid, ef.PlaneStress(0.46), ef.compression(grid, pressure=100.0), np.full((17, 17), 1e4))
    stated(m, 0.43).save(tmp_path / "scan.h5")
    for suffix in ("h5", "npz", "mat"):
        out = tmp_path / f"map.{suffix}"
        words = ["reconstruct", str(tmp_path / "scan.h5"), "-o", str(out), "--prior", "tv", "--quiet"]
        assert main([*words, "--poisson", "estimate"]) == 0
        shown = capsys.readouterr().out
        _, _, info = ef.load_modulus(out)
        low, high = info["poisson_interval"]
        assert low < info["poisson"] < high and info["poisson"] == pytest.approx(0.46, abs=0.01)
        assert f"poisson  {info['poisson']:.4f} (95 % interval {low:.4f} to {high:.4f})" in shown
        assert "--poisson estimate" in info["config"]["command"]


def test_other_words_are_refused():
    m = ef.simulate(GRID, ef.PlaneStress(0.46), ef.compression(GRID, pressure=100.0), TRUTH)
    with pytest.raises(ValueError, match=r"poisson must be 'stated' or 'estimate', got 0.4"):
        ef.reconstruct(m, poisson=0.4)
