"""One map from several frames: sums of data terms against the dense formula, and the maps that they give."""

import numpy as np
import pytest
from test_fidelity import Dense, measure, psi_of, truth

import elastofast as ef
from elastofast.inversion.cross_validation import halves
from elastofast.inversion.evidence import held_back, prediction, residual
from elastofast.misfit.joint import JointFidelity

LAW = ef.PlaneStress(0.495)


def dense_curvature(dense, m, x, u):
    """D^T Gamma^-1 D in log x at the displacement u, with the displacements of the open dofs as unknowns."""
    rows, k = dense.rows, np.einsum("n,nij->ij", x.ravel(), dense.psi)[dense.rows]
    gamma = (k[:, dense.noisy] * dense.std**2) @ k[:, dense.noisy].T + np.diag(dense.sw**2)
    d = np.einsum("nij,j->in", dense.psi[:, rows], u, optimize=True) * x.ravel()
    return d.T @ np.linalg.solve(gamma, d)


KINDS = [
    ("pressure", "constant", 0.0),
    ("open side", "uneven", 0.0),
    ("strain", "holes", 0.0),
    ("all open", "uneven", 0.0),
    ("pressure", "uneven", 2e-3),
]


@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_value_gradient_displacement_and_degrees_of_freedom_are_the_dense_sums(geometry):
    frames = [measure(geometry, "plane stress", *kind, seed=k)[0] for k, kind in enumerate(KINDS)]
    x = truth(geometry, "plane stress", "pressure")[2] * np.random.default_rng(5).uniform(
        0.8, 1.3, frames[0].geometry.node_shape
    )
    joint = ef.JointMeasurement(frames)
    dense = [Dense(m, psi_of(geometry, "plane stress")) for m in frames]
    values, _, fields = zip(*(one(x) for one in dense), strict=True)
    fidelity = JointFidelity(joint, rtol=1e-10)
    j, g = fidelity(x)
    assert j == pytest.approx(sum(values), rel=1e-6) and g.shape == x.shape
    expected = sum(one.differences(x) for one in dense)
    assert np.linalg.norm(g.ravel() - expected) <= 1e-6 * np.linalg.norm(expected)
    now = fidelity.evaluate(x.reshape(1, -1))
    np.testing.assert_allclose(now.frame_values[:, 0], values, rtol=1e-6)
    assert now.displacement.shape == (1, len(frames), 2, x.size)
    for own, u in zip(now.displacement[0], fields, strict=True):
        assert np.linalg.norm(own.ravel() - u) <= 1e-6 * np.linalg.norm(u)
    each = [m.load.n_equations - np.isinf(m.displacement_std[~m.load.fixed]).sum() for m in frames]
    assert list(fidelity.frame_n_data) == each and fidelity.n_data == sum(each)


def test_frozen_gradient_is_the_sum_of_those_of_the_frames():
    frames = [measure("grid", "plane stress", kind, seed=k)[0] for k, kind in enumerate(("pressure", "open side"))]
    x = truth("grid", "plane stress", "pressure")[2] * 1.1
    g = JointFidelity(ef.JointMeasurement(frames), "frozen", rtol=1e-10)(x)[1]
    np.testing.assert_allclose(g, sum(ef.Fidelity(m, "frozen", rtol=1e-10)(x)[1] for m in frames), rtol=1e-6)


def test_newton_steps_solve_the_dense_system_of_all_frames():
    """Where displacements of open dofs are unknown, those of each frame are eliminated by themselves."""
    from elastofast.misfit.curvature import truncated_newton_step

    kinds = ["open side", "pressure", "open side"]
    frames = [measure("9 x 10", "plane stress", kind, "uneven", seed=k)[0] for k, kind in enumerate(kinds)]
    x = truth("9 x 10", "plane stress", "pressure")[2].reshape(1, -1) * 1.05
    fidelity = JointFidelity(ef.JointMeasurement(frames), rtol=1e-10)
    now = fidelity.evaluate(x)
    b = np.random.default_rng(1).standard_normal(x.shape)
    h = sum(
        dense_curvature(Dense(m, psi_of("9 x 10", "plane stress")), m, x, u.ravel())
        for m, u in zip(frames, now.displacement[0], strict=True)
    )
    r = h.trace() / len(h)
    d = truncated_newton_step(
        fidelity.curvature(x, now), b, r, steps=200, tolerance=1e-10, finish=lambda product, v: product + r * v
    )
    expected = np.linalg.solve(h + r * np.eye(len(h)), b[0])
    # the library's Hessian has a fixed approximation of each solve with K
    assert np.linalg.norm(d[0] - expected) < 0.05 * np.linalg.norm(expected)


def test_gradients_of_noise_have_the_covariance_of_all_frames():
    frames = [measure("grid", "plane stress", kind, seed=k)[0] for k, kind in enumerate(("pressure", "strain"))]
    x = truth("grid", "plane stress", "pressure")[2].reshape(1, -1)
    fidelity, rng = JointFidelity(ef.JointMeasurement(frames)), np.random.default_rng(0)
    now = fidelity.evaluate(x)
    draws = np.array([x * fidelity.noise_gradient(x, now, rng, 1e-8) for _ in range(400)])
    probes = np.array([[x * b for b in fidelity.noise_gradients(x, now, rng, 1e-8)] for _ in range(400)])
    h = sum(
        dense_curvature(Dense(m, psi_of("grid", "plane stress")), m, x, u.ravel())
        for m, u in zip(frames, now.displacement[0], strict=True)
    )
    assert (draws**2).sum(axis=-1).mean() == pytest.approx(h.trace(), rel=0.1)
    assert (probes**2).sum(axis=(1, -1)).mean() == pytest.approx(h.trace(), rel=0.1)
    assert (draws.sum(axis=-1) ** 2).mean() == pytest.approx(h.sum(), rel=0.25)


# maps ---------------------------------------------------------------------------------------------

GRID = ef.Grid((33, 33), (1e-3, 1e-3))
TRUTH, _ = ef.inclusion(GRID, (16e-3, 16e-3), 6e-3, modulus=40e3, background=10e3)


def error(result, true=TRUTH):
    true = true / np.exp(np.log(true).mean()) if result.relative else true
    return np.linalg.norm(result.modulus - true) / np.linalg.norm(true)


def shear(grid, traction):
    """Bottom held, the top pulled sideways."""
    fixed, force = np.zeros((2, *grid.shape), bool), np.zeros((2, *grid.shape))
    fixed[:, -1] = True
    force[1, 0] = traction * grid.spacing[1]
    force[1, 0, [0, -1]] /= 2
    return ef.Boundary(fixed=fixed, force=force)


def scans(load, count, snr=25.0, first=0, grid=GRID, true=TRUTH):
    return [ef.simulate(grid, LAW, load, true, snr=snr, seed=first + k) for k in range(count)]


PRESSED = ef.compression(GRID, pressure=100.0)


def test_equal_frames_give_the_map_of_their_mean():
    """The mean is a sufficient statistic: with equal loads and noise, J differs from that of the mean by a constant."""
    frames = scans(PRESSED, 4, snr=20.0)
    mean = ef.Measurement(
        GRID, LAW, PRESSED, np.mean([m.displacement for m in frames], axis=0), frames[0].displacement_std / 2
    )
    joint = ef.reconstruct(frames, prior="tv", weight=50.0, joint=True)
    single = ef.reconstruct(mean, prior="tv", weight=50.0)
    assert joint.status == "converged" and len(joint.frame_chi2) == 4
    np.testing.assert_allclose(joint.modulus, single.modulus, rtol=0.02)
    n = [float(ef.Fidelity(m).n_data) for m in frames]
    assert joint.chi2 == pytest.approx(np.average(joint.frame_chi2, weights=n)) and 0.9 < joint.chi2 < 1.1


def test_four_frames_are_better_than_one_with_an_automatic_weight():
    frames = scans(PRESSED, 4, snr=20.0)
    joint = ef.reconstruct(frames, prior="tv", joint=True)
    assert error(joint) < 0.9 * np.mean([error(ef.reconstruct(m, prior="tv", weight=20.0)) for m in frames])
    assert joint.displacement.shape == (4, 2, 33, 33) and not joint.relative and joint.rejected is None


def test_weight_by_cross_validation_is_near_the_best_one():
    frames = scans(PRESSED, 1, snr=25.0, first=3) + scans(shear(GRID, 30.0), 1, snr=25.0, first=4)
    result = ef.reconstruct(frames, prior="tv", joint=True)
    errors = [error(ef.reconstruct(frames, "tv", result.weight * f, joint=True)) for f in (0.25, 0.5, 2.0, 4.0)]
    assert error(result) < 1.1 * min(errors)


def test_frames_are_split_unless_one_half_alone_knows_the_scale():
    moved = scans(ef.compression(GRID, strain=0.01), 1)[0]
    pressed = scans(PRESSED, 1)[0]
    assert [len(half.frames) for half in halves(ef.JointMeasurement([pressed] * 5))] == [3, 2]
    assert halves(ef.JointMeasurement([moved, moved])) and halves(ef.JointMeasurement([pressed])) is None
    assert halves(ef.JointMeasurement([moved, pressed])) is None
    mixed = ef.reconstruct([moved, pressed], prior="tv", joint=True)  # then the weight is Stein's
    assert error(mixed) < 0.25


def test_two_loads_are_better_than_either():
    sheared = shear(GRID, 30.0)
    one, other = scans(PRESSED, 1)[0], scans(sheared, 1, first=7)[0]
    errors = [error(ef.reconstruct(m, prior="tv", weight=w)) for m in (one, other) for w in (20.0, 40.0, 80.0)]
    both = ef.reconstruct(ef.JointMeasurement([one, other]), prior="tv", weight=50.0)
    assert error(both) < min(errors)


def test_frames_without_a_force_give_one_relative_map_and_a_force_in_one_fixes_the_scale():
    """J of a body that is moved, not loaded, does not depend on the modulus' scale: no frame has one of its own."""
    moved = ef.compression(GRID, strain=0.01)
    fixed, displacement = moved.fixed.copy(), moved.displacement.copy()
    fixed[1, 0], displacement[1, 0] = True, 2e-4
    dragged = ef.Boundary(fixed=fixed, displacement=displacement)
    frames = scans(moved, 1, snr=35.0) + scans(dragged, 1, snr=35.0, first=3)
    fidelity = JointFidelity(ef.JointMeasurement(frames), rtol=1e-10)
    assert fidelity(3 * TRUTH)[0] == pytest.approx(fidelity(TRUTH)[0], rel=1e-6)
    both = ef.reconstruct(frames, prior="tv", weight=100.0, joint=True)
    assert both.relative and np.exp(np.log(both.modulus).mean()) == pytest.approx(1.0) and error(both) < 0.2
    known = ef.reconstruct([*frames, *scans(PRESSED, 1, snr=35.0)], prior="tv", weight=100.0, joint=True)
    assert not known.relative and error(known) < 0.2


def test_total_forces_of_several_frames_fix_the_scale_by_least_squares():
    frames = []
    for k, strain in enumerate((0.01, 0.02)):
        load = ef.compression(GRID, strain=strain)
        form = ef.ElasticForm(GRID, LAW)
        push = float(form.force(TRUTH, ef.solve_forward(form, TRUTH, load))[0, 0].sum())
        m = ef.simulate(GRID, LAW, load, TRUTH, snr=45.0, seed=k)
        measured = ef.compression(GRID, strain=strain, total_force=push * (1.1, 0.95)[k])
        frames.append(ef.Measurement(GRID, LAW, measured, m.displacement, m.displacement_std))
    result = ef.reconstruct(frames, prior="tikhonov", weight=1.0, joint=True)
    # forces 1 and 2 with errors of 10 and -5 per cent: (1.1 * 1 + 0.95 * 2 * 2) / (1 + 4)
    away = np.log(result.modulus / TRUTH)
    assert not result.relative and np.median(away) == pytest.approx(np.log(0.98), abs=0.02)


def test_each_frame_may_have_shifted_drifted_holes_and_outliers():
    """What moves a frame as a whole where its edges are open, and what was not measured, has no influence."""
    opened = np.zeros((2, 33, 33), bool)
    opened[:, [0, -1]] = opened[:, :, [0, -1]] = True
    clean = scans(PRESSED, 2, snr=35.0)
    std = clean[0].displacement_std.copy()
    std[:, 5:9, 5:9] = np.inf
    cut = [ef.Measurement(GRID, LAW, ef.Boundary(open=opened), m.displacement, std) for m in clean]
    u = np.where(np.isinf(std), np.nan, cut[1].displacement + 1e-4 * np.array([1.0, -2.0]).reshape(2, 1, 1))
    drifted = ef.Measurement(GRID, LAW, ef.Boundary(open=opened), u, std)
    results = [ef.reconstruct([cut[0], other], prior="tv", weight=100.0, joint=True) for other in (cut[1], drifted)]
    np.testing.assert_allclose(results[0].modulus, results[1].modulus, rtol=0.02)
    wrong = clean[1].displacement.copy()
    at = np.random.default_rng(0).choice(np.arange(40, wrong[0].size - 40), 15, replace=False)
    wrong[0].flat[at] += 40 * clean[1].displacement_std[0].flat[at]
    spoilt = ef.Measurement(GRID, LAW, PRESSED, wrong, clean[1].displacement_std)
    found = ef.reconstruct([clean[0], spoilt], prior="tv", weight=100.0, joint=True)
    assert found.rejected.shape == (2, 2, 33, 33) and not found.rejected[0].any()
    assert found.rejected[1, 0].flat[at].all() and error(found) < 0.2


def test_a_frame_that_is_not_explained_is_named():
    one, other = scans(PRESSED, 2)
    wrong = ef.Measurement(GRID, LAW, ef.compression(GRID, pressure=150.0), other.displacement, other.displacement_std)
    result = ef.reconstruct([one, one, one, wrong], prior="tv", weight=50.0, joint=True, noise="gaussian")
    assert max(result.frame_chi2) == result.frame_chi2[3] and "in frame 3" in result.message


def test_noise_that_a_frame_does_not_state_is_estimated():
    grid = ef.Grid((21, 21), (1.5e-3, 1.5e-3))
    true, _ = ef.inclusion(grid, (15e-3, 15e-3), 6e-3, modulus=40e3, background=10e3)
    one, other = scans(ef.compression(grid, pressure=100.0), 2, grid=grid, true=true)
    unknown = ef.Measurement(grid, LAW, other.load, other.displacement)
    with pytest.warns(
        UserWarning, match=r"displacement_std was not given. It is estimated .*: frame 1: displacement_std"
    ):
        result = ef.reconstruct([one, unknown], prior="tikhonov", weight=1.0, joint=True)
    assert result.noise[0] is None and 0.5 < (result.noise[1].std / other.level).max() < 2
    with pytest.raises(ValueError, match="displacement_std of a frame was not given"):
        JointFidelity(ef.JointMeasurement([one, unknown]))


@pytest.mark.parametrize(("optimizer", "prior"), [("l-bfgs", "tikhonov"), ("descent", "tikhonov"), (None, "target")])
def test_other_optimisers_take_frames_too(optimizer, prior):
    class Smooth:
        """The target of a map is its local mean."""

        def target(self, z, shape):
            from scipy.ndimage import uniform_filter

            return uniform_filter(z.reshape(-1, *shape), (1, 3, 3)).reshape(z.shape)

    small = ef.Grid((17, 17), (2e-3, 2e-3))
    true, _ = ef.inclusion(small, (16e-3, 16e-3), 6e-3, modulus=40e3, background=10e3)
    frames = scans(ef.compression(small, pressure=100.0), 2, grid=small, true=true)
    frames += scans(shear(small, 30.0), 1, grid=small, true=true, first=5)
    prior = Smooth() if prior == "target" else prior
    kwargs = {"max_iterations": 10} if optimizer == "descent" else {}
    result = ef.reconstruct(frames, prior=prior, weight=1.0, optimizer=optimizer, joint=True, **kwargs)
    assert len(result.frame_chi2) == 3 and result.chi2 < (50 if optimizer == "descent" else 1.5)


def test_maps_that_the_frames_reject_are_replaced():
    """Tests of the residual, data held back and fall-backs see all frames."""

    class Known:
        """A prior whose idea of the true map never changes."""

        def __init__(self, x):
            self.z = np.log(x).ravel()

        def target(self, z, shape):
            return np.broadcast_to(self.z, z.shape)

    elsewhere, _ = ef.inclusion(GRID, (10e-3, 20e-3), 6e-3, modulus=50e3, background=12e3)
    frames = scans(PRESSED, 2, snr=35.0)
    kept = ef.reconstruct(frames, prior=Known(TRUTH), joint=True)
    assert kept.fallback == "" and len(kept.comparison) == 1 and error(kept) < 0.05
    replaced = ef.reconstruct(frames, prior=Known(elsewhere), joint=True)
    assert replaced.fallback in ("weight", "prior") and error(replaced) < 0.25 and len(replaced.frame_chi2) == 2


def test_residuals_of_all_frames_are_tested_as_one_measurement():
    """With independent noise and with a stated correlation: false alarms are no more frequent than stated."""
    rng = np.random.default_rng(0)
    white = [ef.Measurement(GRID, LAW, PRESSED, np.where(PRESSED.fixed, 0, 1e-6 * rng.normal(size=(2, 33, 33))), 1e-6)
             for _ in range(40)]  # fmt: skip
    zero = np.zeros((2, 2, 33, 33))
    found = [residual(ef.JointMeasurement(white[k : k + 2]), zero) for k in range(0, 40, 2)]
    alarms = sum(one.probability < 0.1 for one in found)
    assert alarms <= 6 and not any(one.structured for one in found)
    assert np.mean([one.level for one in found]) == pytest.approx(1.0, abs=0.03)
    bent = white[0].derived(displacement=white[0].displacement + 1e-6 * np.sin(np.arange(33) / 5))
    assert residual(ef.JointMeasurement([white[1], bent]), zero).structured
    stated = [
        m.derived(displacement_correlation=tuple(np.eye(33)[0] + 0.5 * np.eye(33)[1] for _ in range(2)))
        for m in white[:2]
    ]
    each = [residual(m, zero[0]).probability for m in stated]
    both = residual(ef.JointMeasurement(stated), zero)
    assert both.probability == pytest.approx(min(1.0, 2 * min(each)))


def test_data_held_back_are_independent_in_each_frame():
    joint = ef.JointMeasurement(scans(PRESSED, 2))
    fitted, other = held_back(joint, 48)
    assert fitted.displacement.shape == joint.displacement.shape
    noise = [(half.displacement - joint.displacement) / joint.displacement_std for half in (fitted, other)]
    inside = joint.observed
    assert np.corrcoef(noise[0][0][inside[0]], noise[0][1][inside[1]])[0, 1] == pytest.approx(0.0, abs=0.1)
    assert (noise[0][inside].std(), noise[1][inside].std()) == pytest.approx((0.5, 2.0), rel=0.1)
    first, second = joint.displacement, joint.displacement + joint.displacement_std
    gained = prediction(joint, first, second)
    each = [prediction(m, u, v) for m, u, v in zip(joint.frames, first, second, strict=True)]
    assert gained.excess == pytest.approx(sum(one.excess for one in each))
    assert gained.std == pytest.approx(np.hypot(*(one.std for one in each)))


def test_coarse_levels_and_meshes_serve_frames():
    grid = ef.Grid((97, 97), (4e-4, 4e-4))
    true, _ = ef.inclusion(grid, (19e-3, 19e-3), 7e-3, modulus=40e3, background=10e3)
    load = ef.compression(grid, pressure=100.0)
    result = ef.reconstruct(scans(load, 2, grid=grid, true=true), prior="tv", weight=100.0, joint=True)
    assert {entry["shape"] for entry in result.history} == {(49, 49), (97, 97)} and error(result, true) < 0.15


# what fits together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "kind", "message"),
    [
        (lambda m, other: [], ValueError, "frames is empty"),
        (lambda m, other: m, TypeError, "frames must be a list of Measurements, got Measurement"),
        (lambda m, other: [m, "scan.h5"], TypeError, "its entry 1 is str"),
        (lambda m, other: [m, other], ValueError, "law is .* in frame 0 and .* in frame 1"),
    ],
)
def test_frames_of_different_bodies_are_refused(frames, kind, message):
    m = scans(PRESSED, 1)[0]
    other = ef.Measurement(GRID, ef.PlaneStrain(0.495), PRESSED, m.displacement, m.displacement_std)
    with pytest.raises(kind, match=message):
        ef.reconstruct(frames(m, other), joint=True)


def test_frames_in_one_file_and_in_several_give_the_map_that_they_give_in_memory(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from elastofast import cli

    grid = ef.Grid((13, 13), (2e-3, 2e-3))
    true, _ = ef.inclusion(grid, (12e-3, 12e-3), 6e-3, modulus=40e3, background=10e3)
    frames = [
        *scans(ef.compression(grid, pressure=100.0), 1, grid=grid, true=true),
        *scans(shear(grid, 30.0), 1, grid=grid, true=true),
    ]
    joint = ef.JointMeasurement(frames)
    for suffix in ("npz", "mat"):
        joint.save(tmp_path / f"both.{suffix}")
        for m, own in zip(frames, ef.load_frames(tmp_path / f"both.{suffix}"), strict=True):
            assert np.array_equal(m.displacement, own.displacement) and np.array_equal(m.load.force, own.load.force)
            assert np.array_equal(m.displacement_std, own.displacement_std) and np.array_equal(own.reference, true)
    with pytest.raises(ValueError, match="holds 2 frames, not one measurement"):
        ef.load_measurement(tmp_path / "both.npz")
    for k, m in enumerate(frames):
        m.save(tmp_path / f"frame{k}.npz")
    quick = ("--prior", "tikhonov", "--weight", "3", "--quiet")
    expected = ef.reconstruct(joint, prior="tikhonov", weight=3.0)
    for given in (["both.npz"], ["frame0.npz", "frame1.npz"]):
        out = tmp_path / "map.npz"
        files = [str(tmp_path / name) for name in given]
        figure = ("--plot", str(tmp_path / "map.png")) if len(files) == 1 else ()
        code = cli.main(["reconstruct", "--joint", *files, "-o", str(out), *quick, *figure])
        assert code == 0 and "frames   " in capsys.readouterr().out
        modulus, _, info = ef.load_modulus(out)
        np.testing.assert_array_equal(modulus, expected.modulus)
        assert info["displacement"].shape == (2, 2, 13, 13) and np.shape(info["frame_chi2"]) == (2,)
        assert info["config"]["command"].startswith("elastofast reconstruct --joint ")
    expected.save(tmp_path / "map.vtu")
    assert b'Name="displacement_1"' in (tmp_path / "map.vtu").read_bytes()


def test_a_sidecar_reads_the_frames_of_an_array(tmp_path):
    grid = ef.Grid((13, 13), (2e-3, 2e-3))
    true, _ = ef.inclusion(grid, (12e-3, 12e-3), 6e-3, modulus=40e3, background=10e3)
    frames = [scans(ef.compression(grid, pressure=p), 1, grid=grid, true=true)[0] for p in (100.0, 200.0)]
    np.savez(tmp_path / "u.npz", u=np.stack([m.displacement for m in frames]))
    sidecar = {
        "files": {"frames": 2},
        "axial": {"displacement": "u[{frame}, 0]", "spacing": 2e-3},
        "lateral": {"displacement": "u[{frame}, 1]", "spacing": 2e-3},
        "units": {"displacement": "m", "coordinate": "m"},
        "noise": {"std": 1e-6},
        "law": {"kind": "plane_stress", "poisson": 0.495},
        "load": {"kind": "pressure", "values": [100.0, 200.0]},
    }
    found = ef.load_frames(tmp_path / "u.npz", sidecar)
    for m, own in zip(frames, found, strict=True):
        np.testing.assert_allclose(own.displacement, m.displacement)
        np.testing.assert_allclose(own.load.force, m.load.force)
    sidecar["load"]["values"] = [1.0]
    with pytest.raises(ValueError, match=r"load.values must have one value for each of 2 frames"):
        ef.load_frames(tmp_path / "u.npz", sidecar)


# on a device --------------------------------------------------------------------------------------


def test_frames_on_a_device_take_their_steps_together_and_give_the_map_of_the_cpu(monkeypatch):
    """Two frames of one load are one batch there, a third one by itself; several weights are tried at once."""
    import device

    put, get = device.install(monkeypatch)
    grid = ef.Grid((17, 15), (2e-3, 2e-3))
    true, _ = ef.inclusion(grid, (16e-3, 16e-3), 6e-3, modulus=40e3, background=10e3)
    one, other = scans(ef.compression(grid, pressure=100.0), 2, grid=grid, true=true)
    hosts = [one, scans(shear(grid, 30.0), 1, grid=grid, true=true, first=9)[0], other]
    there = [ef.Measurement(grid, LAW, m.load, put(m.displacement), m.displacement_std) for m in hosts]
    x = true * np.random.default_rng(5).uniform(0.9, 1.1, true.shape)
    expected, found = (JointFidelity(ef.JointMeasurement(frames), rtol=1e-10) for frames in (hosts, there))
    (j, g), (own, slope) = expected(x), found(put(x))
    assert own == pytest.approx(j, rel=1e-7)
    np.testing.assert_allclose(get(slope), g, atol=1e-5 * np.abs(g).max())
    moduli = np.stack([x.ravel(), true.ravel()])
    pair = JointFidelity.of_members(ef.JointMeasurement(there), 2, "exact", 1e-10)
    assert [part.frames for part in pair._parts] == [[0, 2], [1]]
    both, each = pair.evaluate(put(moduli)), [expected.evaluate(own[None]) for own in moduli]
    np.testing.assert_allclose(both.frame_values, np.concatenate([own.frame_values for own in each], axis=1), rtol=1e-6)
    v = np.random.default_rng(6).standard_normal((2, x.size))
    products = get(pair.curvature(put(moduli), both)(put(v)))
    for k, now in enumerate(each):
        np.testing.assert_allclose(
            get(both.displacement)[k], now.displacement[0], atol=1e-6 * np.abs(one.displacement).max()
        )
        wanted = expected.curvature(moduli[k : k + 1], now)(v[k : k + 1])[0]
        np.testing.assert_allclose(products[k], wanted, atol=1e-4 * np.abs(wanted).max())
    noise = pair.noise_gradients(put(moduli), both, np.random.default_rng(0), 1e-8)
    assert len(noise) == 3 and noise[0].shape == (2, x.size)
    options = {"prior": "tikhonov", "weight": 3.0, "max_iterations": 4, "joint": True}
    first, second = (ef.reconstruct(frames, **options) for frames in (hosts, there))
    assert np.linalg.norm(get(second.modulus) - first.modulus) < 0.02 * np.linalg.norm(first.modulus)
    np.testing.assert_allclose(second.frame_chi2, first.frame_chi2, rtol=0.02)


def test_the_hessian_of_frames_is_the_sum_of_theirs_and_a_data_term_can_be_pickled():
    import pickle

    frames = [measure("grid", "plane stress", kind, seed=k)[0] for k, kind in enumerate(("pressure", "strain"))]
    x = truth("grid", "plane stress", "pressure")[2] * 1.1
    fidelity = pickle.loads(pickle.dumps(JointFidelity(ef.JointMeasurement(frames), rtol=1e-10)))
    for exact in (False, True):
        v = np.random.default_rng(3).standard_normal(x.size)
        each = sum(ef.Fidelity(m, rtol=1e-10).hessian_operator(x, exact) @ v for m in frames)
        np.testing.assert_allclose(fidelity.hessian_operator(x, exact) @ v, each, atol=1e-6 * np.abs(each).max())
