"""Tracking, on speckle of scatterers that move through known fields."""

import warnings
from functools import cache

import numpy as np
import pytest
from scipy import ndimage, signal

import elastofast as ef
from elastofast import cli
from elastofast.io import load_modulus
from elastofast.tracking import Frames, Scanner, read_frames, sample_spacing, simulate_frames, track_sequence
from elastofast.tracking.accuracy import correlation_length, covariance_of_samples, dependence
from elastofast.tracking.predictor import outliers, predictor
from elastofast.tracking.windows import Windows, find_peak, refine

SMALL = Scanner(shape=(780, 96), pitch=0.16e-3)  # 15 mm x 15 mm
LARGE = Scanner(shape=(1250, 154), pitch=0.157e-3)  # 24 mm x 24 mm
INNER = np.s_[:, 2:-2, 2:-2]  # away from the edges


def compressed(strain, height, width):
    """Uniform compression of an incompressible sheet that rests on its bottom."""
    return lambda p: np.stack([-strain * (p[:, 0] - height), strain / 2 * (p[:, 1] - width / 2)], axis=1)


def shifted(axial, lateral):
    return lambda p: np.broadcast_to([axial, lateral], p.shape)


def truth(tracking, motion):
    return motion(tracking.grid.points + tracking.origin).T.reshape(tracking.displacement.shape)


@cache
def compressed_pair(decorrelation=0.02, snr=20.0):
    """One pair of frames, its motion and what was tracked."""
    motion = compressed(0.01, 24e-3, 24e-3)
    a, b = simulate_frames(LARGE, motion, snr=snr, decorrelation=decorrelation, seed=4)
    return a, b, motion, ef.track(a, b, LARGE.spacing, step=0.5e-3)


# simulated frames ---------------------------------------------------------------------------------


def test_a_scatterer_is_imaged_as_the_point_spread_function_where_it_is():
    z, x = (h * np.arange(n) for h, n in zip(SMALL.spacing, SMALL.shape, strict=True))
    depth, side, amplitude = 7.013e-3, 5.07e-3, 2.5
    image = SMALL.image(np.array([[depth, side]]), np.array([amplitude]))
    pulse, beam = SMALL.widths
    wave = np.cos(4 * np.pi * 5e6 / 1540 * (z - depth)) * np.exp(-((z - depth) ** 2) / (2 * pulse**2))
    expected = amplitude * np.outer(wave, np.exp(-((x - side) ** 2) / (2 * beam**2)))
    np.testing.assert_allclose(image, expected, atol=1e-4 * amplitude)  # where the simulated function is cut off
    # the stated widths, at half the amplitude: of the beam, and of the spectrum of the pulse
    half = np.exp(-((0.3e-3) ** 2) / (2 * beam**2))
    assert half == pytest.approx(0.5)
    seconds = 2 * pulse / 1540
    assert np.exp(-((2 * np.pi * 1.5e6 * seconds) ** 2) / 2) == pytest.approx(0.5)


def test_speckle_is_fully_developed_and_correlated_as_stated():
    a, b = simulate_frames(LARGE, shifted(0, 0), decorrelation=0.36, seed=1)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(0.8, abs=0.02)
    envelope = np.abs(signal.hilbert(a, axis=0))[100:-100]
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, abs=0.1)  # of a Rayleigh distribution
    noisy, _ = simulate_frames(LARGE, shifted(0, 0), snr=10, seed=1)
    clean, _ = simulate_frames(LARGE, shifted(0, 0), seed=1)
    assert (clean.var() / (noisy - clean).var()) == pytest.approx(10, rel=0.02)


# accuracy -----------------------------------------------------------------------------------------


def test_the_bound_is_the_closed_form_for_little_white_noise():
    # 1 / var = A <(2 pi f)^2> S / (2 N), with the mean-square frequencies of the pulse and the beam
    window, (pulse, beam) = (2e-3, 1.5e-3), SMALL.widths
    samples = np.prod(window) / np.prod(SMALL.spacing)
    frequencies = (4 * np.pi * 5e6 / 1540) ** 2 + 1 / (2 * pulse**2), 1 / (2 * beam**2)
    expected = [(samples * f * 10**5.0 / 2) ** -0.5 for f in frequencies]
    np.testing.assert_allclose(SMALL.bound(window, snr=50.0), expected, rtol=1e-3)
    with pytest.raises(ValueError, match="the bound is zero"):
        SMALL.bound(window)


def half_distance(error, axis, spacing):
    """Distance at which the empirical correlation is one half, in metres."""
    e = np.moveaxis(error - error.mean(), axis, 0)
    values = np.array([(e[: len(e) - k] * e[k:]).mean() for k in range(8)]) / (e**2).mean()
    k = int(np.argmax(values < 0.5))
    return spacing * np.interp(0.5, values[[k, k - 1]], [k, k - 1])


@pytest.mark.parametrize("decorrelation, snr", [(0.0, 20.0), (0.02, 20.0), (0.1, 10.0)])
def test_error_reaches_the_bound_and_is_stated_rightly(decorrelation, snr):
    *_, motion, tracking = compressed_pair(decorrelation, snr)
    assert tracking.kind == "rf" and tracking.measured[INNER[1:]].all()
    error = (tracking.displacement - truth(tracking, motion))[INNER]
    std = tracking.displacement_std[INNER]
    for component, bound in enumerate(LARGE.bound(tracking.window, snr=snr, decorrelation=decorrelation)):
        rms = np.sqrt((error[component] ** 2).mean())
        assert 0.8 * bound < rms < 2 * bound
        assert np.sqrt(((error[component] / std[component]) ** 2).mean()) == pytest.approx(1, abs=0.25)


def test_correlation_of_errors_is_stated_rightly():
    *_, motion, tracking = compressed_pair()
    error = ((tracking.displacement - truth(tracking, motion)) / tracking.displacement_std)[INNER]
    for axis in range(2):
        spacing = tracking.grid.spacing[axis]
        empirical = np.mean([half_distance(component, axis, spacing) for component in error])
        # where exp(-(h / length)^2) is one half
        assert tracking.correlation_length[axis] * np.sqrt(np.log(2)) == pytest.approx(empirical, rel=0.2)
        table = tracking.error_correlation[axis]
        assert table[0] == 1 and abs(table[-1]) < 0.02
        half = spacing * np.interp(0.5, table[::-1], np.arange(len(table))[::-1])
        assert half == pytest.approx(empirical, rel=0.2)


def brightness(rf):
    """Eight bits of logarithmic brightness over 60 dB."""
    envelope = np.abs(signal.hilbert(rf, axis=0))
    return np.clip(255 * (1 + np.log10(envelope / envelope.max()) / 3), 0, 255).astype(np.uint8)


def test_brightness_is_tracked_too():
    a, b, motion, rf = compressed_pair()
    tracking = ef.track(brightness(a), brightness(b), LARGE.spacing, step=0.5e-3)
    assert tracking.kind == "b-mode"
    z = ((tracking.displacement - truth(tracking, motion)) / tracking.displacement_std)[INNER]
    np.testing.assert_allclose(np.sqrt((z**2).mean((1, 2))), 1, atol=0.25)
    # without a carrier, the axial component is less accurate than with one
    assert np.median(tracking.displacement_std[0]) > 3 * np.median(rf.displacement_std[0])


def test_coarsely_sampled_signals_are_resampled():
    scanner = Scanner(shape=(520, 96), sampling_frequency=20e6, frequency=7e6, pitch=0.2e-3)  # 2.9 samples a period
    motion = compressed(0.01, 20e-3, 19e-3)
    a, b = simulate_frames(scanner, motion, snr=20, decorrelation=0.02, seed=2)
    tracking = ef.track(a, b, scanner.spacing, step=0.5e-3)
    z = ((tracking.displacement - truth(tracking, motion)) / tracking.displacement_std)[INNER]
    np.testing.assert_allclose(np.sqrt((z**2).mean((1, 2))), 1, atol=0.25)


def test_noise_that_grows_with_depth_is_stated_rightly_at_every_depth():
    scanner, motion = Scanner(shape=(1250, 96), pitch=0.157e-3), compressed(0.01, 24e-3, 15e-3)
    a, b = simulate_frames(scanner, motion, decorrelation=0.02, seed=11)  # of the spectrum of the signal
    rng, fading = np.random.default_rng(0), 10 ** (-np.linspace(0, 1.5, 1250))[:, None]  # by 30 dB
    noise = 0.02 * a.std()  # white
    a, b = (fading * frame + noise * rng.normal(size=frame.shape) for frame in (a, b))
    tracking = ef.track(a, b, scanner.spacing, step=0.5e-3)
    z = ((tracking.displacement - truth(tracking, motion)) / tracking.displacement_std)[INNER]
    for zone in np.array_split(z, 3, axis=1):
        np.testing.assert_allclose(np.sqrt(np.nanmean(zone**2, axis=(1, 2))), 1, atol=0.3)  # of 80 separate windows


@pytest.mark.parametrize("masked", [False, True])
def test_a_shadow_is_not_measured_and_leaves_the_rest_alone(masked):
    a, b, motion, whole = compressed_pair()
    rng = np.random.default_rng(0)
    shadow = np.zeros(a.shape, bool)
    shadow[600:, 60:90] = True  # 4.7 mm wide, below 11.5 mm
    if masked:
        a, b = (np.ma.masked_array(frame, shadow) for frame in (a, b))
    else:
        a, b = (np.where(shadow, 0.05 * rng.normal(size=a.shape), frame) for frame in (a, b))
    tracking = ef.track(a, b, LARGE.spacing, window=whole.window, step=whole.grid.spacing)
    depth, side = (tracking.grid.points + tracking.origin).T.reshape(2, *tracking.grid.shape)
    reach = np.array(tracking.window) / 2
    inside = (depth > 600 * LARGE.spacing[0] + reach[0]) & (
        np.abs(side - 75 * LARGE.pitch) < 15 * LARGE.pitch - reach[1]
    )
    away = (depth < 600 * LARGE.spacing[0] - reach[0]) | (np.abs(side - 75 * LARGE.pitch) > 15 * LARGE.pitch + reach[1])
    assert inside.sum() > 50 and not tracking.measured[inside].any()
    assert np.isnan(tracking.displacement[:, inside]).all() and np.isinf(tracking.displacement_std[:, inside]).all()
    away[[0, 1, -1, -2]] = away[:, [0, 1, -1, -2]] = False
    assert tracking.measured[away].all()
    z = (tracking.displacement - truth(tracking, motion))[:, away] / tracking.displacement_std[:, away]
    np.testing.assert_allclose(np.sqrt((z**2).mean(1)), 1, atol=0.25)


# conventions --------------------------------------------------------------------------------------


def test_displacement_is_positive_with_depth_and_line_and_belongs_to_the_reference():
    # 3.4 wavelengths, and a fraction of a line
    a, b = simulate_frames(SMALL, shifted(0.52e-3, 0.06e-3), snr=30, seed=3)
    tracking = ef.track(a, b, SMALL.spacing, search=1e-3)
    assert np.nanmedian(tracking.displacement[0]) == pytest.approx(0.52e-3, abs=1e-6)
    assert np.nanmedian(tracking.displacement[1]) == pytest.approx(0.06e-3, abs=10e-6)
    back = ef.track(b, a, SMALL.spacing, search=1e-3)
    assert np.nanmedian(back.displacement[0]) == pytest.approx(-0.52e-3, abs=1e-6)
    # windows that have moved out of the frame are not measured: at the bottom, for a motion to the bottom
    assert tracking.measured[0].all() and not tracking.measured[-1].any()
    assert back.measured[-1].all() and not back.measured[0].any()


def test_edges_of_the_frame_do_not_hold_the_displacement_fast():
    motion = shifted(0.1e-3, 0.1e-3)
    z = []
    for seed in range(3):
        a, b = simulate_frames(SMALL, motion, snr=20, decorrelation=0.02, seed=seed)
        tracking = ef.track(a, b, SMALL.spacing, window=2e-3)
        z.append((tracking.displacement - truth(tracking, motion)) / tracking.displacement_std)
    outer = [np.mean(z, axis=0)[k].take(i, axis=k) for k in range(2) for i in (0, -1)]
    for mean in outer:  # of three frames and about six separate windows, in standard deviations
        assert abs(np.nanmean(mean)) < 1


def test_strain_of_one_per_cent_is_found_in_the_coordinates_of_the_reference():
    *_, motion, tracking = compressed_pair()
    # referred to the deformed frame, the displacement at the top would differ by 1 % of 240 um
    top = (tracking.displacement - truth(tracking, motion))[0, 1, 2:-2]
    assert abs(top.mean()) < 0.5e-6


def test_depths_are_those_of_half_the_way_of_the_echo():
    assert sample_spacing(sampling_frequency=20e6, pitch=0.3e-3, sound_speed=1500.0) == pytest.approx((37.5e-6, 0.3e-3))
    for name in ("sampling_frequency", "pitch", "sound_speed"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            sample_spacing(**{"sampling_frequency": 1e6, "pitch": 1e-3, name: 0.0})


def test_nodes_are_where_they_are_asked_for():
    a, b, *_ = compressed_pair()
    tracking = ef.track(a, b, LARGE.spacing, window=(1.5e-3, 2.5e-3), step=1.1e-3)
    assert tracking.grid.spacing == (1.1e-3, 1.1e-3) and tracking.window == (1.5e-3, 2.5e-3)
    for axis, (n, h) in enumerate(zip(LARGE.shape, LARGE.spacing, strict=True)):
        free = (n - 1) * h - 1.1e-3 * (tracking.grid.shape[axis] - 1)
        assert tracking.origin[axis] == pytest.approx(free / 2)
        assert tracking.origin[axis] > tracking.window[axis] / 2 - h


def test_sequences_are_tracked_against_the_first_or_the_previous_frame():
    a, b = simulate_frames(SMALL, shifted(0.1e-3, 0.0), seed=5)
    frames = np.stack([a, b, a])
    for data in (frames, Frames(frames, ("a", "b", "c"))):
        with pytest.raises(ValueError, match="both frames are equal"):
            list(track_sequence(data, SMALL.spacing))
        found = track_sequence(data, SMALL.spacing, reference="previous")
        medians = [np.nanmedian(t.displacement[0]) for t in found]
        np.testing.assert_allclose(medians, [0.1e-3, -0.1e-3], atol=1e-7)
    with pytest.raises(ValueError, match="reference must be"):
        track_sequence(frames, SMALL.spacing, reference="last")
    with pytest.raises(ValueError, match="two or more"):
        track_sequence(frames[:1], SMALL.spacing)


# errors and warnings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda a, b: (a, b[:-3]), ValueError, "one shape"),
        (lambda a, b: (a, b.T), ValueError, "transposed"),
        (lambda a, b: (a, a), ValueError, "nothing moved"),
        (lambda a, b: (0 * a, b), ValueError, "reference is constant"),
        (lambda a, b: (a, np.where(a > 3, np.nan, b)), ValueError, "deformed must be finite, got nan at sample"),
        (lambda a, b: (signal.hilbert(a), b), TypeError, "complex"),
        (lambda a, b: (a > 0, b > 0), TypeError, "real numbers"),
        (lambda a, b: (a[0], b[0]), ValueError, "one frame"),
        (lambda a, b: (np.stack([a, b]), b), ValueError, "one frame"),
    ],
)
def test_frames_that_cannot_be_tracked_are_refused(change, error, text):
    a, b = simulate_frames(SMALL, shifted(1e-4, 0.0), seed=6)
    with pytest.raises(error, match=text):
        ef.track(*change(a, b), SMALL.spacing)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"spacing": None}, TypeError, "spacing is missing"),
        ({"spacing": 1e-4}, ValueError, "two numbers"),
        ({"spacing": (1e-4, -1e-4)}, ValueError, "positive"),
        ({"spacing": (0.02, 0.16)}, ValueError, "in metres"),  # millimetres
        ({"kind": "iq"}, ValueError, "kind must be one of"),
        ({"window": 0.2e-3}, ValueError, "independent samples"),
        ({"window": 14e-3}, ValueError, "fewer than 3 nodes"),
        ({"window": (1e-3, 1e-3, 1e-3)}, ValueError, "window must be one or two"),
        ({"step": 3e-3}, ValueError, "step must not be larger"),
        ({"step": -1e-3}, ValueError, "step must be positive"),
        ({"search": 9e-3}, ValueError, "at most half"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, error, text):
    a, b = simulate_frames(SMALL, shifted(1e-4, 0.0), seed=6)
    with pytest.raises(error, match=text):
        ef.track(a, b, **{"spacing": SMALL.spacing, **options})


@pytest.mark.parametrize("motion", [shifted(0.25e-3, 0.0), compressed(0.02, 15e-3, 15e-3)], ids=["shift", "strain"])
def test_motion_beyond_the_search_range_is_an_error(motion):
    a, b = simulate_frames(SMALL, motion, snr=20, seed=7)
    with pytest.raises(ValueError, match=r"larger than the search range 0\.1 x 0\.1 mm"):
        ef.track(a, b, SMALL.spacing, search=0.1e-3)
    assert ef.track(a, b, SMALL.spacing, search=0.7e-3).measured.mean() > 0.8


def test_decorrelated_frames_are_noticed():
    a, b = simulate_frames(SMALL, shifted(1e-4, 0.0), decorrelation=0.6, seed=8)
    with pytest.warns(UserWarning, match="median correlation is 0.6.*out of the image plane.*wrong order"):
        tracking = ef.track(a, b, SMALL.spacing)
    assert (tracking.correlation[tracking.measured] > 0.5).all()
    a, b = simulate_frames(SMALL, shifted(1e-4, 0.0), decorrelation=1.0, seed=8)
    with pytest.raises(ValueError, match=r"nothing could be tracked.*out of the image plane"):
        ef.track(a, b, SMALL.spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compressed_pair(0.1, 10.0)


# pieces -------------------------------------------------------------------------------------------


def test_sums_over_windows_count_samples_in_part():
    image = np.random.default_rng(0).normal(size=(30, 20))
    windows = Windows(image.shape, (5.0, 4.5), (np.array([4.0, 9.0]), np.array([6.0, 8.25])))
    sums = windows(image)
    assert sums.shape == (2, 2)
    # 4.5 samples about 6 are those from 3.75 to 8.25: half a sample 4 and 8 wide, with the edges of samples at .5
    assert sums[0, 0] == pytest.approx(image[2:7] @ [*4 * [0], 0.75, 1, 1, 1, 0.75, *11 * [0]] @ np.ones(5))
    # from 6 to 10.5
    assert sums[1, 1] == pytest.approx((image[7:12] @ [*6 * [0], 0.5, 1, 1, 1, 1, *9 * [0]]).sum())
    assert windows(np.ones(image.shape)) == pytest.approx(windows.n)


def waves(z, x, seed=0):
    """A smooth random field that can be evaluated anywhere."""
    rng = np.random.default_rng(seed)
    k = rng.normal([0.7, 0], [0.1, 0.25], size=(300, 2))
    phase = rng.uniform(0, 2 * np.pi, 300)
    return sum(np.cos(k0 * z + k1 * x + p) for (k0, k1), p in zip(k, phase, strict=True)) / np.sqrt(150)


def test_steps_lead_to_the_peak_and_find_it_after_whole_samples():
    z, x = np.meshgrid(np.arange(120.0), np.arange(60.0), indexing="ij")
    windows = Windows(z.shape, (61.0, 41.0), (np.array([50.0, 70.0]), np.array([28.0, 31.0])))
    a, inside = waves(z, x), np.ones(z.shape, bool)
    assert refine(windows, a, a, inside)[0] == pytest.approx(0, abs=1e-12)
    step, correlation, *_ = refine(windows, a, 3 * waves(z - 0.3, x + 0.2) + 1, inside)  # whatever gain and offset
    np.testing.assert_allclose(step, np.broadcast_to([[[0.3]], [[-0.2]]], step.shape), atol=0.02)
    assert (correlation < 1).all()
    peak, correlation, at_edge = find_peak(windows, a, waves(z - 4.2, x + 2.1), (6, 3), 0.5)
    np.testing.assert_allclose(peak, np.broadcast_to([[[4.2]], [[-2.1]]], peak.shape), atol=0.1)
    assert not at_edge.any() and (correlation > 0.9).all()
    assert find_peak(windows, a, waves(z - 4.2, x + 2.1), (4, 3), 0.5)[2].all()


def test_dependence_and_correlation_length_of_noise_with_a_known_covariance():
    """Against the variance and covariance of sums over windows in many realisations."""
    rng, size, distance = np.random.default_rng(1), (24, 16), 8
    draws = {"sum": [], "samples": [], "dependence": [], "length": []}
    centres = (np.arange(20.0, 180, 3), np.arange(20.0, 130, 3))
    for _ in range(20):
        g, e = (ndimage.gaussian_filter(rng.normal(size=(200, 150)), s) for s in ((2.0, 1.0), (2.5, 2.0)))
        windows = Windows(g.shape, size, centres)
        covariance = covariance_of_samples(g, e, size)
        draws["sum"].append(windows(g * e))
        draws["samples"].append(windows(g**2) * windows(e**2) / windows.n)
        draws["dependence"].append(dependence(windows, g, e, covariance, np.ones(windows.node_shape, bool)).mean())
        draws["length"].append(correlation_length(covariance, size, 0))
    sums = np.array(draws["sum"])
    assert np.mean(draws["dependence"]) == pytest.approx((sums**2).mean() / np.mean(draws["samples"]), rel=0.15)
    shared = [(sums[:, : sums.shape[1] - k] * sums[:, k:]).mean() / (sums**2).mean() for k in range(distance)]
    half = 3 * np.interp(0.5, shared[::-1], np.arange(distance)[::-1])
    assert np.mean(draws["length"]) * np.sqrt(np.log(2)) == pytest.approx(half, rel=0.1)


def test_predictor_keeps_linear_fields_and_replaces_outliers():
    i, j = np.indices((20, 25))
    field = np.stack([0.3 * i - 0.1 * j, 0.02 * i + 0.2 * j])
    broken = field + 0.05 * np.random.default_rng(2).normal(size=field.shape)
    broken[0, 5:7, 8] += 4
    broken[1, 12, 3] -= 3
    found = outliers(broken, np.array([0.1, 0.1]))
    assert found[5:7, 8].all() and found[12, 3] and found.sum() == 3
    smooth = predictor(np.where(found, 99.0, field), ~found, (2.0, 1.5))
    np.testing.assert_allclose(smooth, field, atol=1e-9)


# measurements -------------------------------------------------------------------------------------


def test_a_measurement_has_open_edges_a_known_pressure_or_a_plate():
    *_, tracking = compressed_pair()
    law, grid = ef.PlaneStress(0.495), tracking.grid
    m = tracking.measurement(law)
    assert m.load.open.sum() == 2 * (2 * sum(grid.shape) - 4) and not m.load.force.any()
    good = tracking.measured
    np.testing.assert_array_equal(m.displacement[:, good], tracking.displacement[:, good])
    np.testing.assert_array_equal(m.displacement_std, tracking.displacement_std)
    for axis, table in enumerate(tracking.error_correlation):
        np.testing.assert_array_equal(m.displacement_correlation[axis][: len(table)], table)

    m = tracking.measurement(law, pressure=50.0)
    assert m.load.loaded[0, 0, 1:-1].all() and m.load.open[1, 0].all() and m.load.open[:, -1].all()
    assert m.load.force.sum() == pytest.approx(50 * grid.spacing[1] * (grid.shape[1] - 2))

    m = tracking.measurement(law, pressure=50.0, plate=True)
    expected = ef.compression(grid, pressure=50.0)
    np.testing.assert_array_equal(m.load.force, expected.force)
    np.testing.assert_array_equal(m.load.fixed, expected.fixed)
    shift = np.nanmean(tracking.displacement[0, -1])
    np.testing.assert_allclose(m.displacement[0, 5], tracking.displacement[0, 5] - shift)

    whole = ef.Boundary(open=np.ones((2, *grid.shape), bool) & (np.arange(grid.shape[1]) % 5 == 0))
    assert tracking.measurement(law, load=whole).load is whole
    for wrong, text in (({"load": expected, "pressure": 1.0}, "not both"), ({"plate": True}, "goes with pressure")):
        with pytest.raises(ValueError, match=text):
            tracking.measurement(law, **wrong)


# files --------------------------------------------------------------------------------------------


@pytest.fixture
def stack():
    return np.random.default_rng(3).normal(size=(3, 40, 24))


def test_data_files_are_read_in_any_format(tmp_path, stack):
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    np.savez(tmp_path / "frames.npz", rf=stack, fs=40e6, depth=np.arange(40.0))
    np.save(tmp_path / "frames.npy", stack)
    savemat(tmp_path / "frames.mat", {"RF": stack.transpose(1, 2, 0), "fs": 40e6})
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["scan/rf"] = stack
        file["scan/time"] = np.arange(3.0)
    with h5py.File(tmp_path / "v73.mat", "w", userblock_size=512) as file:  # in the axes of MATLAB: z, x, t
        file["RF"] = stack.transpose(1, 2, 0).T
        file["RF"].attrs["MATLAB_class"] = np.bytes_("double")
    for name in ("frames.npz", "frames.npy", "frames.mat", "frames.h5", "v73.mat"):
        frames = read_frames(tmp_path / name)
        np.testing.assert_array_equal(frames.data, stack)
        assert len(frames) == 3 and str(tmp_path / name) in frames.names[2] and "frame 2" in frames.names[2]


def test_variables_and_axes_can_be_chosen(tmp_path, stack):
    path = tmp_path / "pair.npz"
    np.savez(path, before=stack[0].T, after=stack[1].T, text="scan")
    with pytest.raises(ValueError, match=r"choose variable= among before, after"):
        read_frames(path)
    with pytest.raises(ValueError, match=r"no variable 'rf'; the file holds before \(24, 40\)"):
        read_frames(path, "rf")
    frames = read_frames(path, ["after", "before"], axes="xz")
    np.testing.assert_array_equal(frames.data, stack[[1, 0]])
    for axes in ("xy", "xzt", "zz"):
        with pytest.raises(ValueError, match="axes must name the 2 axes of before"):
            read_frames(path, ["before"], axes=axes)
    np.savez(path, depth=np.arange(40.0))
    with pytest.raises(ValueError, match="none of them can be frames"):
        read_frames(path)


def test_images_are_read_in_grey_and_page_by_page(tmp_path):
    io = pytest.importorskip("skimage.io")
    grey = np.random.default_rng(4).integers(0, 256, (2, 30, 40), dtype=np.uint8)
    io.imsave(tmp_path / "one.png", grey[0], check_contrast=False)
    io.imsave(tmp_path / "colour.png", np.stack([grey[0]] * 3, axis=-1), check_contrast=False)
    io.imsave(tmp_path / "pages.tif", grey, check_contrast=False)
    np.testing.assert_array_equal(read_frames(tmp_path / "one.png").data, grey[:1])
    np.testing.assert_allclose(read_frames(tmp_path / "colour.png").data, grey[:1], atol=1e-9)
    np.testing.assert_array_equal(read_frames(tmp_path / "pages.tif").data, grey)


def test_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_frames(tmp_path / "missing.mat")
    with pytest.raises(FileNotFoundError):
        read_frames(tmp_path / "missing.png")
    for name, content in (("a.txt", b"1 2 3"), ("a.npz", b"PK\x03\x04junk"), ("a.png", b"junk"), ("a.mat", b"junk")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: "):
            read_frames(tmp_path / name)
    np.save(tmp_path / "object.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):  # refused, not unpickled
        read_frames(tmp_path / "object.npy", "data")


# the command --------------------------------------------------------------------------------------

SPACED = ("--sampling-frequency", 40e6, "--pitch", SMALL.pitch)


def run(*arguments, capsys):
    code = cli.main([str(a) for a in arguments])
    return (code, *capsys.readouterr())


def test_one_command_leads_from_frames_to_a_map(tmp_path, capsys):
    pytest.importorskip("h5py")
    pytest.importorskip("matplotlib")
    body = ef.Grid((97, 97), (24e-3 / 96,) * 2)
    modulus, _ = ef.inclusion(body, (12e-3, 12e-3), 4e-3, modulus=30e3, background=10e3)
    law = ef.PlaneStress(0.495)
    u = ef.solve_forward(ef.ElasticForm(body, law), modulus, ef.compression(body, strain=0.01))
    a, b = simulate_frames(LARGE, (body, u), snr=20, decorrelation=0.02, seed=9)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    field, out, plot, figure = (tmp_path / n for n in ("field.h5", "map.h5", "map.png", "field.png"))
    code, text, err = run(
        *("track", tmp_path / "a.npy", tmp_path / "b.npy", "-o", field, "--law", "plane_stress"),
        *("--sampling-frequency", 40e6, "--pitch", LARGE.pitch, "--figure", figure),
        *("--reconstruct", out, "--prior", "tv", "--plot", plot),
        capsys=capsys,
    )
    assert code == 0, err
    for word in ("RF frames", "median correlation", "axial", "lateral", "chi2", str(field), str(out), str(plot)):
        assert word in text
    assert plot.read_bytes()[:4] == figure.read_bytes()[:4] == b"\x89PNG"
    found, grid, info = load_modulus(out)
    assert info["relative"] and ef.load_measurement(field).geometry == grid
    # the grid is in the middle of the frame, as the lesion is
    away = np.hypot(*(grid.points - grid.points.mean(axis=0)).T).reshape(grid.shape)
    contrast = found[away < 3e-3].mean() / found[(away > 5.5e-3) & (away < 9e-3)].mean()
    assert contrast == pytest.approx(3, rel=0.3)


def test_sequences_give_one_field_for_each_frame(tmp_path, capsys):
    a, b = simulate_frames(SMALL, shifted(0.1e-3, 0.0), snr=30, seed=10)
    np.savez(tmp_path / "scan.npz", rf=np.stack([a, b, -a[::-1]]))
    code, out, err = run("track", tmp_path / "scan.npz", "-o", tmp_path / "u.npz", *SPACED, capsys=capsys)
    assert code == 2 and "nothing could be tracked" in err  # of the third; the first was written
    assert "u-001.npz" in out and not (tmp_path / "u-002.npz").exists()
    options = ("-o", tmp_path / "back.npz", *SPACED, "--frame", 1, 0, "--pressure", 80, "--poisson", 0.49)
    code, out, err = run("track", tmp_path / "scan.npz", *options, capsys=capsys)
    assert code == 0, err
    m = ef.load_measurement(tmp_path / "back.npz")
    assert m.law == ef.PlaneStrain(0.49) and m.load.force.any()
    measured = np.isfinite(m.displacement_std[0])
    assert np.median(m.displacement[0, measured]) == pytest.approx(-0.1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "options, text",
    [
        ([], "--sampling-frequency and --pitch missing"),
        (["--pitch", "1e-4"], "--sampling-frequency missing"),
        (["--spacing", "2e-5", "1e-4", "--pitch", "1e-4"], "not both"),
        (["--spacing", "2e-2", "1e-1"], "in metres"),
        (["--spacing", "2e-5", "1e-4", "--plot", "x.png"], "--plot draws the map"),
        (["--spacing", "2e-5", "1e-4", "--frame", "0", "7"], "--frame must name frames from 0 to 1"),
        (["--spacing", "2e-5", "1e-4", "--plate"], "plate goes with pressure"),
        (["--spacing", "2e-5", "1e-4", "--window", "1", "1", "1"], "--window takes one or two numbers"),
        (["--spacing", "2e-5", "1e-4", "--reconstruct", "x.npz", "--prior", "best"], "invalid choice: 'best'"),
    ],
)
def test_the_command_says_what_is_missing(tmp_path, capsys, monkeypatch, options, text):
    monkeypatch.chdir(tmp_path)
    a, b = simulate_frames(Scanner(shape=(520, 64), pitch=0.16e-3), shifted(1e-4, 0.0), seed=6)
    np.savez("scan.npz", rf=np.stack([a, b]))
    code, out, err = run("track", "scan.npz", "-o", "u.npz", *options, capsys=capsys)
    assert code == 2 and text in err and err.count("\n") == 1 and "Traceback" not in out + err
