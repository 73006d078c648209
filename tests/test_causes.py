"""What a user is told about a map that does not explain the data: each cause is made to happen."""

import re

import numpy as np
import pytest

import elastofast as ef
from elastofast.inversion.causes import likely_cause
from elastofast.inversion.options import Options
from elastofast.result import message

GRID = ef.Grid((25, 25), (1.3e-3, 1.3e-3))
TRUTH, _ = ef.inclusion(GRID, (13e-3, 19e-3), 6e-3, modulus=40e3, background=12e3)
LAWS = ef.PlaneStress(0.46), ef.PlaneStrain(0.48)
SIGN = np.array([1.0, -1.0]).reshape(2, 1, 1)
PRESSED, MOVED = ef.compression(GRID, pressure=100.0), ef.compression(GRID, strain=0.01)


def scan(law, load, snr=40.0):
    return ef.simulate(GRID, law, load, TRUTH, snr=snr, seed=2)


def told(m, chi2=30.0, bounds=None, known=None, held=0.0, status="converged", **changes):
    """What is said about a map with this chi2: that of no run, since a run under a wrong model takes its time."""
    options = Options.checked(
        m.geometry, True, False, prior="tv", gradient="exact", optimizer=None, bounds=bounds, max_iterations=None,
        step=1.0, progress=None, load=None, known=known,
    )  # fmt: skip
    result = ef.Result(
        modulus=TRUTH, displacement=np.zeros_like(m.displacement), status=status, message="", chi2=chi2,
        weight=1e3, history=[], seconds=0.0, relative=False, prior="tv", gradient="exact", optimizer="gauss-newton",
        geometry=m.geometry, held=held, **changes,
    )  # fmt: skip
    return likely_cause(m, result, options)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_a_wrong_poisson_ratio(law):
    m = scan(law, PRESSED).derived(law=law.with_poisson(law.poisson - 0.06))
    assert re.search(
        rf"a Poisson ratio of about 0\.4\d\d in place of {m.law.poisson:g}; poisson=.estimate. finds it", told(m)
    )


def test_a_wrong_poisson_ratio_that_the_map_makes_up_for():
    """chi2 is one then, but the run does not end."""
    m = scan(LAWS[0], PRESSED)
    assert not told(m, chi2=1.0, status="max_iterations")
    text = told(m.derived(law=ef.PlaneStress(0.49)), chi2=1.0, status="max_iterations")
    assert re.search(r"wrong Poisson ratio: 0\.4[56]\d .* suits the data better than 0\.49\.", text)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_bonded_plates_that_were_stated_frictionless(law):
    """The advice leads to a right map, whichever of its ways is taken."""
    bonded = ef.compression(GRID, strain=0.01, contact="bonded")
    m = scan(law, bonded, snr=45.0)
    assert 'contact="bonded"' in told(m.derived(load=MOVED))
    clean = ef.solve_forward(ef.ElasticForm(GRID, law), TRUTH, bonded)
    std = np.where(m.load.fixed, m.displacement_std.max(), m.displacement_std)
    noisy = clean + std * np.random.default_rng(0).normal(size=clean.shape)  # on the plates too
    for load in (bonded, ef.compression(GRID, contact="measured")):
        result = ef.reconstruct(ef.Measurement(GRID, law, load, noisy, std) if load.open.any() else m, prior="tv")
        away = np.log(result.modulus / TRUTH)
        assert result.chi2 < 1.1 and np.std(away) < 0.12


def test_a_pressure_that_was_stated_uniform():
    law = LAWS[0]
    middle = np.abs(np.arange(25) - 12) < 5
    force = PRESSED.force * middle * PRESSED.force.sum() / (PRESSED.force * middle).sum()
    m = scan(law, ef.Boundary(fixed=PRESSED.fixed, force=force)).derived(load=PRESSED)
    assert "where forces are applied" in told(m)


def test_sides_that_are_not_free():
    sides = np.zeros((2, 25, 25), bool)
    sides[1][:, [0, -1]] = True
    m = scan(LAWS[0], ef.Boundary(fixed=MOVED.fixed | sides, displacement=MOVED.displacement)).derived(load=MOVED)
    assert "edges that the load leaves free may not be free" in told(m)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda u: SIGN * u, "the lateral displacement seems to have the wrong sign"),
        (lambda u: -u, "the displacement seems to have the wrong sign"),
        (lambda u: u[::-1], "components of the displacement seem to be in the wrong order"),
        (lambda u: u[:, ::-1], "depth seems to run upwards: axis 0"),
        (lambda u: -SIGN * u[:, ::-1], "depth seems to run upwards, and the axial displacement too"),
        (lambda u: u.transpose(0, 2, 1), "the axes seem to be interchanged"),
        (lambda u: u[::-1].transpose(0, 2, 1), "axes and components seem to be interchanged"),
    ],
)
def test_axes_and_signs(change, expected):
    m = scan(LAWS[0], MOVED)
    assert expected in told(m.derived(displacement=change(m.displacement)))


def test_units_of_force():
    m = scan(LAWS[0], PRESSED)
    pascals = m.derived(load=ef.compression(GRID, pressure=0.1))
    text = told(pascals, bounds=(1e3, 1e6), held=0.9)
    assert "check the units of the force" in text and "with a mean modulus of 1" in text
    result = ef.reconstruct(m.derived(load=ef.compression(GRID, pressure=1e5)), prior="tv")
    assert "unlike that of soft tissue: check the units" in result.message


def test_known_moduli_that_contradict_the_force():
    """They were not mentioned, and the Poisson ratio that was stated was named as the cause."""
    pad = np.full(GRID.shape, np.nan)
    pad[:4] = 3 * TRUTH[:4]
    text = told(scan(LAWS[0], PRESSED), known=pad)
    found = re.search(r"mean modulus of (.*) Pa where known has 3.6e\+04 Pa: check known, and the units", text)
    assert float(found[1]) == pytest.approx(12e3, rel=0.1) and "Poisson" not in text
    assert "the contrasts within known, or its region, contradict the data" in told(scan(LAWS[0], MOVED), known=pad)


def test_weight_noise_and_the_unknown():
    m = scan(LAWS[0], PRESSED)
    heavy = ef.reconstruct(m, prior="tv", weight=1e5)
    assert heavy.chi2 > 1.3 and "the weight (1e+05) is too large" in heavy.message
    faint = ef.reconstruct(m.derived(displacement_std=m.displacement_std / 2), prior="tv")
    assert "white noise of 2" in faint.message and "that is too small" in faint.message
    bump = 40 * m.displacement_std * np.sin(np.indices(GRID.shape).sum(axis=0))  # no body moves like that
    assert told(m.derived(displacement=m.displacement + bump)).startswith("Neither another Poisson ratio")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_good_data_are_left_alone(law):
    edge = np.ones((2, 25, 25), bool)
    edge[:, 1:-1, 1:-1] = False
    for m in (scan(law, PRESSED, 25.0), scan(law, MOVED, 45.0).derived(load=ef.Boundary(open=edge))):
        result = ef.reconstruct(m, prior="tv")
        assert result.message == "The objective no longer falls noticeably."


def test_more_iterations_are_the_last_advice_where_nothing_fits():
    text = message("max_iterations", 9.0, "tv", True, held=0.2)
    assert text.index("displacement_std may be") < text.index("raise max_iterations") and "wider bounds" not in text
    assert "raise max_iterations" in message("max_iterations", 1.0, "tv", True)
    assert "give wider bounds" in message("converged", 1.0, "tv", True, held=0.2)
    assert "bounds, are relative" in message("converged", 1.0, "tv", True, held=0.2, relative=True)


def test_short_runs_are_not_examined():
    result = ef.reconstruct(scan(LAWS[0], PRESSED), prior="tv", weight=100.0, max_iterations=1)
    assert result.chi2 > 1.3 and "Tried" not in result.message and "Total variation" not in result.message
