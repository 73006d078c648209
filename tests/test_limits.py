"""What the caller knows of the modulus: known regions, bounds at each node, bounds beside a total force."""

import warnings

import numpy as np
import pytest
from dense import dense_psi
from test_fidelity import Dense

import elastofast as ef

LAW = ef.PlaneStress(0.495)
GRID = ef.Grid((25, 25), (1e-3, 1e-3))
TRUTH, _ = ef.inclusion(GRID, (14e-3, 12e-3), 5e-3, modulus=40e3, background=10e3)
TRUTH = TRUTH.copy()
TRUTH[:4] = 20e3  # a gel pad
PAD = np.full(GRID.shape, np.nan)
PAD[:4] = 20e3


def scan(load, snr=40.0, seed=1, true=TRUTH, grid=GRID):
    return ef.simulate(grid, LAW, load, true, snr=snr, seed=seed)


PRESSED, MOVED = ef.compression(GRID, pressure=100.0), ef.compression(GRID, strain=0.01)


def error(x, true=TRUTH):
    return np.linalg.norm(x - true) / np.linalg.norm(true)


def test_known_nodes_are_held_at_the_minimum_of_the_others():
    """Against the dense objective, minimised over the free nodes alone by SciPy."""
    from scipy.optimize import minimize

    grid = ef.Grid((5, 6), (1e-3, 1.2e-3))
    true = np.random.default_rng(3).uniform(1e4, 3e4, grid.shape)
    m = scan(ef.compression(grid, pressure=200.0), 30.0, true=true, grid=grid)
    known = np.where(np.arange(5)[:, None] < 2, true, np.nan) * np.ones(grid.shape)
    dense, prior, weight = Dense(m, dense_psi(grid, LAW)), ef.priors.Tikhonov(grid), 5.0
    free = np.isnan(known)

    def objective(z):
        x = known.copy()
        x[free] = np.exp(z)
        return dense(x)[0] + weight * prior(x)[0]

    least = minimize(objective, np.full(free.sum(), np.log(2e4)), method="BFGS", options={"gtol": 1e-4})
    for optimizer in ("gauss-newton", "l-bfgs"):
        found = ef.reconstruct(m, prior="tikhonov", weight=weight, optimizer=optimizer, known=known)
        assert np.array_equal(found.modulus[~free], known[~free])
        assert objective(np.log(found.modulus[free])) <= least.fun * (1 + 1e-4)
        np.testing.assert_allclose(found.modulus[free], np.exp(least.x), rtol=0.05)


class Smooth:
    """The target of a map is its local mean."""

    def target(self, z, shape):
        from scipy.ndimage import uniform_filter

        return uniform_filter(z.reshape(-1, *shape), (1, 3, 3)).reshape(z.shape)


@pytest.mark.parametrize(
    "options",
    [
        {"prior": "tv"},
        {"prior": "tikhonov", "weight": 3.0, "gradient": "frozen"},
        {"prior": "none"},
        {"prior": Smooth()},
        {"prior": "tikhonov", "weight": 3.0, "optimizer": "descent", "max_iterations": 5},
    ],
    ids=["automatic weight", "frozen", "no prior", "splitting", "descent"],
)
@pytest.mark.parametrize("load", [PRESSED, MOVED], ids=["pressure", "strain"])
def test_known_moduli_are_exact_and_fix_the_scale_with_every_optimiser(options, load):
    result = ef.reconstruct(scan(load), known=PAD, **options)
    assert not result.relative and np.array_equal(result.modulus[:4], PAD[:4])
    if options.get("optimizer") != "descent" and options["prior"] != "none":
        assert error(result.modulus) < 0.3
    assert result.held < 0.05  # which does not count them


def test_known_moduli_pass_through_coarse_levels():
    grid = ef.Grid((97, 97), (4e-4, 4e-4))
    true, _ = ef.inclusion(grid, (19e-3, 19e-3), 7e-3, modulus=40e3, background=10e3)
    true = true.copy()
    true[:9] = 20e3
    known = np.ma.masked_array(true, mask=np.arange(97)[:, None] * np.ones(97) >= 9)
    m = scan(ef.compression(grid, strain=0.01), 35.0, true=true, grid=grid)
    result = ef.reconstruct(m, prior="tv", weight=200.0, known=known)
    assert {entry["shape"] for entry in result.history} == {(49, 49), (97, 97)}
    assert np.array_equal(result.modulus[:9], true[:9]) and error(result.modulus, true) < 0.15


def test_known_moduli_and_bounds_hold_on_meshes():
    from scipy.spatial import Delaunay

    mesh = ef.Mesh(GRID.points, Delaunay(GRID.points).simplices)
    m = scan(ef.compression(mesh, strain=0.01), true=TRUTH.ravel(), grid=mesh)
    result = ef.reconstruct(m, prior="tikhonov", weight=3.0, known=PAD.ravel())
    assert (
        np.array_equal(result.modulus[: 4 * 25], PAD.ravel()[: 4 * 25]) and error(result.modulus, TRUTH.ravel()) < 0.3
    )


def test_bounds_hold_at_each_node():
    low, high = np.full(GRID.shape, 5e3), np.full(GRID.shape, 25e3)
    high[8:20, 6:18] = 60e3
    m = scan(PRESSED, 25.0)
    wide = ef.reconstruct(m, prior="tv", weight=10.0)
    result = ef.reconstruct(m, prior="tv", weight=10.0, bounds=(low, high))
    slack = 1 + 1e-12
    assert (result.modulus >= low / slack).all() and (result.modulus <= high * slack).all()
    assert not (wide.modulus <= high * slack).all() and error(result.modulus) < error(wide.modulus)


def pushed(true=TRUTH, share=1.0):
    form = ef.ElasticForm(GRID, LAW)
    force = share * float(form.force(true, ef.solve_forward(form, true, MOVED))[0, 0].sum())
    m = scan(MOVED, 30.0)
    return ef.Measurement(
        GRID, LAW, ef.compression(GRID, strain=0.01, total_force=force), m.displacement, m.displacement_std
    )


def test_bounds_hold_where_a_total_force_fixes_the_scale():
    m = pushed()
    free = ef.reconstruct(m, prior="tikhonov", weight=2.0)
    # wide bounds change nothing
    wide = ef.reconstruct(m, prior="tikhonov", weight=2.0, bounds=(1e2, 1e6))
    assert error(wide.modulus, free.modulus) < 0.005
    assert not wide.relative
    # the right ones hold, with the right scale
    tight = ef.reconstruct(m, prior="tikhonov", weight=2.0, bounds=(10e3, 40e3))
    assert free.modulus.min() < 9.9e3 or free.modulus.max() > 40.1e3
    assert tight.modulus.min() >= 9999 and tight.modulus.max() <= 40001 and error(tight.modulus) < error(free.modulus)
    form = ef.ElasticForm(GRID, LAW)
    force = float(form.force(tight.modulus, np.asarray(tight.displacement))[0, 0].sum())
    assert force == pytest.approx(m.load.total_force.value, rel=0.005)


def test_a_total_force_that_contradicts_known_moduli_or_bounds_is_commented_on():
    result = ef.reconstruct(pushed(share=1.5), prior="tv", weight=50.0, known=PAD)
    assert "Under the known moduli the body answers with" in result.message and error(result.modulus) < 0.3
    agreed = ef.reconstruct(pushed(), prior="tv", weight=50.0, known=PAD)
    assert "contradict" not in agreed.message
    result = ef.reconstruct(pushed(share=30.0), prior="tv", weight=50.0, bounds=(5e3, 50e3))
    assert "Under the bounds the body answers with" in result.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": 1e4}, "known must have one modulus per node"),
        ({"known": "pad.h5"}, "known must hold real numbers"),
        ({"known": PAD + 1j}, "known must hold real numbers"),
        ({"known": np.full((25, 25), np.nan)}, "known has 0 values for 625 nodes"),
        ({"known": TRUTH}, "known has 625 values for 625 nodes"),
        ({"known": -PAD}, "known must be positive and finite .* got -20000 at node 0"),
        ({"known": PAD, "bounds": (1e3, 1e4)}, r"known is 20000 Pa at node 0, outside of bounds \(1000, 10000\)"),
        ({"bounds": (np.ones(5), 1e4)}, "bounds must be numbers or have one value per node"),
        ({"bounds": (TRUTH, TRUTH)}, "bounds must satisfy 0 < low < high"),
        ({"bounds": (2.0, 1.0)}, r"bounds must satisfy 0 < low < high \(pascals\), got \(2.0, 1.0\)"),
        ({"bounds": 3.0}, "bounds must be two numbers"),
    ],
)
def test_what_cannot_be_known_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ef.reconstruct(scan(PRESSED), prior="tikhonov", weight=1.0, **arguments)


def test_bounds_of_a_relative_map_name_the_ways_out():
    with pytest.raises(ValueError, match=r"no force is known, .* a total_force with the load, or .* by known"):
        ef.reconstruct(scan(MOVED), prior="tikhonov", weight=1.0, bounds=(1e3, 1e5))


# forces that noise could have made ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("relative_std", "warned"),
    [(0.02, False), (0.5, True)],
)
def test_a_total_force_within_its_noise_is_warned_about(relative_std, warned):
    m, top = scan(MOVED), np.zeros(GRID.shape, bool)
    top[0] = True
    load = ef.Boundary(
        fixed=MOVED.fixed, displacement=MOVED.displacement, total_force=(0, 2.0, top, 2.0 * relative_std)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ef.Measurement(GRID, LAW, load, m.displacement, m.displacement_std)
    assert [("total_force is 2 N" in str(w.message)) for w in caught] == [True] * warned


def test_forces_within_their_noise_are_warned_about_and_forces_that_cancel_out_are_not():
    m = scan(PRESSED)
    squeezed = np.zeros((2, 25, 25))
    squeezed[0, 0], squeezed[0, -1] = 4e-3, -4e-3
    fixed = np.zeros((2, 25, 25), bool)
    fixed[:, 12, 12] = fixed[1, 12, 0] = fixed[0, 12, 0] = True
    both = ef.Boundary(fixed=fixed, force=squeezed)
    rng = np.random.default_rng(0)
    noise = np.where(PRESSED.loaded & (np.arange(25)[:, None] == 0), 1e-3 * rng.standard_normal((2, 25, 25)), 0.0)
    nothing = ef.Boundary(fixed=PRESSED.fixed, force=noise)
    for load, std, warned in ((PRESSED, 1e-3, False), (PRESSED, 1.0, True), (both, 1e-3, False), (nothing, 1e-3, True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ef.Measurement(GRID, LAW, load, np.where(load.fixed, 0.0, m.displacement), m.displacement_std, std)
        assert any("noise alone could have made them" in str(w.message) for w in caught) == warned
