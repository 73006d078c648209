"""Any input whatever: public functions do what they say, or raise a documented exception that names the argument.

ELASTOFAST_EXAMPLES=2000 pytest tests/test_properties.py tries as many random inputs for each property.
"""

import os
import warnings

import numpy as np
import pytest
from dense import dense_psi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import elastofast as ef

EXAMPLES = int(os.environ.get("ELASTOFAST_EXAMPLES", 0))
HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
DOCUMENTED = (ValueError, TypeError, ef.ElastofastError)


def tried(examples):
    """How many inputs a property is tried with: the same few in every run of the tests."""
    return settings(
        max_examples=EXAMPLES or examples, deadline=None, derandomize=not EXAMPLES, suppress_health_check=HEALTH
    )


def outcome(call, *names):
    """What a call returns; None after a documented exception, which must name one of the arguments."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return call()
        except DOCUMENTED as error:
            assert any(name in str(error) for name in names), f"{type(error).__name__} names none of {names}: {error}"
            return None


# arrays in every form -----------------------------------------------------------------------------

LAYOUTS = ("plain", "reversed", "strided", "transposed", "broadcast", "read-only", "list", "masked", "big-endian")
KINDS = ("f8", "f4", "f2", "i4", "u1", "bool", "complex", "object", "text", "longdouble")


def arranged(values, layout, kind):
    """The same values in another layout of memory or of another type."""
    if kind == "object":
        values = values.astype(object)
    elif kind == "text":
        values = values.astype(str)
    elif kind == "big-endian":
        values = values.astype(">f8")
    else:
        values = values.astype({"complex": complex, "longdouble": np.longdouble}.get(kind, kind))
    if layout == "reversed":
        return values[..., ::-1].copy()[..., ::-1]
    if layout == "strided":
        wide = np.empty((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "transposed":
        return np.asfortranarray(values)
    if layout == "broadcast":
        return np.broadcast_to(values, values.shape)
    if layout == "read-only":
        values.setflags(write=False)
    if layout == "list":
        return values.tolist()
    if layout == "masked":
        return np.ma.array(values, mask=np.arange(values.size).reshape(values.shape) == 0)
    if layout == "big-endian" and values.dtype.kind == "f":
        return values.astype(values.dtype.newbyteorder(">"))
    return values


special = st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf, 1e-320, 1e308])
grid = ef.Grid((4, 5), (1e-3, 2e-3))
form = ef.ElasticForm(grid, ef.PlaneStress(0.45))
PSI = dense_psi(grid, form.law)


@st.composite
def moduli(draw, shape=grid.shape):
    """A modulus with a contrast of up to 1e8, sometimes with a value that no modulus has."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = 10 ** (draw(st.floats(-2, 12)) + draw(st.floats(0, 8)) * (rng.random(shape) - 0.5))
    if draw(st.integers(0, 3)) == 0:
        x[tuple(rng.integers(shape))] = draw(special)
    return x


@tried(60)
@given(moduli(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from(KINDS), st.data())
def test_forces_of_arrays_in_any_form_are_those_of_plain_ones(x, layout, other, kind, data):
    if kind in ("i4", "u1", "bool", "f2"):
        x = np.arange(20.0).reshape(4, 5) if kind != "bool" else np.ones((4, 5))
    u = np.random.default_rng(0).standard_normal((2, 4, 5))
    lead = data.draw(st.sampled_from([(), (1,), (3,), (2, 1), (0,)]))
    x, u = np.broadcast_to(x, (*lead, 4, 5)).copy(), u.astype("f4" if kind == "f4" else "f8")
    found = outcome(lambda: form.force(arranged(x, layout, kind), arranged(u, other, u.dtype.str)), "x", "u")
    if found is None:
        return
    assert "masked" not in (layout, other) and kind not in ("complex", "text") and (kind, layout) != ("object", "plain")
    exact = np.einsum("...n,nij,j->...i", x.reshape(*lead, 20), PSI, u.ravel())
    scale = np.abs(exact).max(initial=1e-300)
    tolerance = 1e-4 if kind == "f4" else 1e-10
    if np.isfinite(exact).all() and scale < 1e30:
        np.testing.assert_allclose(found.reshape(exact.shape), exact, rtol=tolerance, atol=tolerance * scale)


@tried(40)
@given(st.lists(st.one_of(st.integers(-3, 6), st.floats(), st.none(), st.text(max_size=2)), max_size=4), st.data())
def test_grids_of_any_shape_and_spacing(shape, data):
    number = st.one_of(st.floats(), st.floats(1e-9, 1e6), st.none(), st.text(max_size=1))
    spacing = data.draw(st.one_of(st.lists(number, max_size=3), st.floats(), st.none(), st.text(max_size=2)))
    found = outcome(lambda: ef.Grid(shape, spacing), "shape", "spacing")
    if found is not None:
        assert found.node_weights.sum() == pytest.approx(
            np.prod([(n - 1) * h for n, h in zip(shape, spacing, strict=True)])
        )


# meshes that are none -----------------------------------------------------------------------------


@st.composite
def meshes(draw):
    """Points and cells of a strip of triangles after something was done to them, or anything else."""
    n = draw(st.integers(2, 4))
    h = 10 ** draw(st.floats(-9, 6))
    points = h * np.stack([np.repeat(np.arange(n), 2), np.tile([0, 1], n)], axis=1)
    left = 2 * np.arange(n - 1)[:, None]
    cells = np.concatenate([left + np.array(corners) for corners in ([0, 2, 1], [2, 3, 1])])
    what = draw(
        st.sampled_from(
            ["nothing", "inverted", "doubled", "flat", "apart", "over", "nan", "number", "negative", "float",
             "lonely", "copied", "empty", "wide", "object"]
        )
    )  # fmt: skip
    if what == "inverted":
        cells = cells[:, ::-1]
    elif what == "doubled":
        cells = np.concatenate([cells, np.roll(cells[:1], draw(st.integers(0, 2)), axis=1)])
    elif what == "flat":
        points[:, 1] = 0
    elif what == "apart":
        points = np.concatenate([points, points + 10 * n * h])
        cells = np.concatenate([cells, cells + 2 * n])
    elif what == "over":
        points = np.concatenate([points, points + 0.3 * h])
        cells = np.concatenate([cells, cells + 2 * n])
    elif what == "nan":
        points[draw(st.integers(0, 2 * n - 1)), 0] = draw(special)
    elif what == "number":
        cells[0, 0] = draw(st.sampled_from([2 * n, 10**9, 2**40]))
    elif what == "negative":
        cells[0, 0] = -1
    elif what == "float":
        cells = cells.astype(float)
    elif what == "lonely":
        points = np.concatenate([points, [[5 * n * h, 0]]])
    elif what == "copied":
        points = np.concatenate([points, points[:1]])
        cells[0, 0] = 2 * n
    elif what == "empty":
        cells = cells[:0]
    elif what == "wide":
        points, cells = points[:, :1], cells[:, :2]
    elif what == "object":
        points = points.astype(object)
        points[0, 0] = "a"
    return what, points, cells


SOUND = ("nothing", "inverted", "apart")


@tried(60)
@given(meshes(), st.integers(0, 2))
def test_meshes_are_sound_or_refused_by_name(mesh, load):
    what, points, cells = mesh
    found = outcome(lambda: ef.Mesh(points, cells), "points", "cells", "node")
    if what not in ("nan", "copied"):  # which may be sound
        assert (found is None) == (what not in SOUND)
    if found is None:
        return
    assert (found.cell_volumes > 0).all()
    body = ef.ElasticForm(found, ef.PlaneStrain(0.4))
    fixed = np.zeros((2, found.n_nodes), bool)
    fixed[:, found.points[:, 0] == found.points[:, 0].min()] = load > 0
    force = np.zeros((2, found.n_nodes))
    force[0, -1] = 1.0
    u = outcome(lambda: ef.solve_forward(body, np.full(found.n_nodes, 1e4), ef.Boundary(fixed=fixed, force=force)),
                "fixed", "x", "load", "support", "move")  # fmt: skip
    if u is not None:
        assert np.isfinite(u).all()
        left = (body.force(np.full(found.n_nodes, 1e4), u) - force)[~fixed]
        assert np.abs(left).max() < 1e-6


# solves -------------------------------------------------------------------------------------------


@tried(40)
@given(moduli((5, 6)), st.floats(-9, 6), st.floats(-9, 6), st.sampled_from([0.0, 0.3, 0.495, 0.4999, -0.9]))
def test_solves_reach_equilibrium_or_say_that_they_do_not(x, axial, lateral, poisson):
    own = ef.Grid((5, 6), (10**axial, 10**lateral))
    body = ef.ElasticForm(own, ef.PlaneStrain(poisson))
    load = ef.compression(own, pressure=100.0)
    u = outcome(lambda: ef.solve_forward(body, x, load), "x", "modulus", "spacing")
    if u is None:
        return
    assert np.isfinite(u).all()
    force, free = body.force(x, u), ~load.fixed
    stiffness = np.einsum("n,nij->ij", x.ravel(), dense_psi(own, body.law))[np.ix_(free.ravel(), free.ravel())]
    backward = np.abs(stiffness).sum(axis=1).max() * np.abs(u).max()  # what rounding alone may leave
    left = np.abs((force - load.force)[free]).max()
    assert left <= 1e-6 * np.abs(load.force).max() + 1e-9 * backward


flags = st.sampled_from(["none", "all", "one", "row", "integers", "wrong"])


def mask(what, shape):
    found = np.zeros(shape, bool)
    if what == "all":
        found[...] = True
    elif what == "one":
        found.reshape(-1)[3] = True
    elif what == "row":
        found[:, -1] = True
    elif what == "integers":
        return found.astype(int)
    elif what == "wrong":
        return found[..., :-1]
    return found


@tried(40)
@given(flags, flags, st.one_of(special, st.floats(-1, 1)), st.one_of(special, st.floats(-1, 1)))
def test_boundaries_of_any_masks(fixed, is_open, displacement, force):
    shape = (2, 5, 6)
    own = ef.Grid((5, 6), (1e-3, 1e-3))
    body = ef.ElasticForm(own, ef.PlaneStress(0.45))

    def solve():
        load = ef.Boundary(
            fixed=mask(fixed, shape),
            displacement=np.where(mask("row", shape), displacement, 0.0),
            force=np.where(mask("one", shape), force, 0.0),
            open=mask(is_open, shape),
        )
        return load, ef.solve_forward(body, np.full(own.shape, 1e4), load)

    found = outcome(solve, "fixed", "open", "displacement", "force", "move", "load")
    if found is not None:
        load, u = found
        assert np.isfinite(u).all() and np.array_equal(u[load.fixed], load.displacement[load.fixed])


# measurements -------------------------------------------------------------------------------------

SMALL = ef.Grid((9, 10), (1e-3, 1e-3))
LOAD = ef.compression(SMALL, pressure=100.0)
TRUTH = np.where((np.arange(90).reshape(9, 10) % 10 > 4), 3e4, 1e4)
U = ef.solve_forward(ef.ElasticForm(SMALL, ef.PlaneStress(0.45)), TRUTH, LOAD)


@st.composite
def arguments(draw):
    """Arguments of a `Measurement`, some of which may be wrong."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    u = U * 10 ** draw(st.sampled_from([0.0, 0.0, -6.0, 2.0]))
    u = u + 1e-7 * rng.standard_normal(u.shape)
    std = np.full(u.shape, 10 ** draw(st.sampled_from([-7.0, -7.0, -12.0, -3.0, -160.0, 30.0])))
    holes = draw(st.sampled_from([0.0, 0.0, 0.3, 0.97, 1.0]))
    std[rng.random(u.shape) < holes] = np.inf
    given = {"displacement": u, "displacement_std": std}
    change = draw(
        st.sampled_from(["none", "none", "value", "scalar", "masked", "force_std", "reference", "shape", "type"])
    )
    if change == "value":
        name = draw(st.sampled_from(["displacement", "displacement_std"]))
        given[name][tuple(rng.integers(u.shape))] = draw(special)
    elif change == "scalar":
        given["displacement_std"] = draw(st.one_of(special, st.none(), st.text(max_size=2), st.floats(1e-9, 1e-5)))
    elif change == "masked":
        given["displacement"] = np.ma.array(u, mask=rng.random(u.shape) < draw(st.sampled_from([0.2, 1.0])))
    elif change == "force_std":
        given["force_std"] = draw(st.one_of(special, st.floats(0, 1)))
    elif change == "reference":
        given["reference"] = draw(moduli(SMALL.shape))
    elif change == "shape":
        given["displacement"] = draw(st.sampled_from([u[0], u[:, :-1], u[None], u[..., None], u[:0], np.float64(1.0)]))
    elif change == "type":
        layout = draw(st.sampled_from(LAYOUTS))
        given["displacement"] = arranged(u, layout, draw(st.sampled_from(KINDS)))
    return given


NAMES = ("displacement", "displacement_std", "force_std", "reference", "x ", "weight", "noise", "modul")


@tried(60)
@given(arguments(), moduli(SMALL.shape), st.sampled_from([(), (1,), (2,), (0,)]))
def test_the_data_term_is_finite_and_not_negative(given, x, lead):
    m = outcome(lambda: ef.Measurement(SMALL, ef.PlaneStress(0.45), LOAD, **given), *NAMES)
    if m is None:
        return
    assert np.isfinite(m.displacement).all()
    x = np.broadcast_to(x, (*lead, *x.shape))
    found = outcome(lambda: ef.Fidelity(m)(x), "displacement_std", *NAMES)
    if found is not None:
        value, gradient = found
        assert np.isfinite(value).all() and (np.asarray(value) >= 0).all() and np.isfinite(gradient).all()
        assert (x > 0).all() and np.isfinite(x).all() and x.size


@tried(12)
@given(
    arguments(), st.sampled_from(["none", "tikhonov", "tv"]), st.sampled_from([None, 0.0, 1e-3, "auto", -1.0, np.nan])
)
def test_reconstructions_are_maps_or_errors(given, prior, weight):
    m = outcome(lambda: ef.Measurement(SMALL, ef.PlaneStress(0.45), LOAD, **given), *NAMES)
    if m is None:
        return
    options = {} if weight is None else {"weight": weight}
    result = outcome(lambda: ef.reconstruct(m, prior=prior, max_iterations=2, **options), *NAMES)
    if result is not None:
        assert result.modulus.shape == SMALL.shape
        assert np.isfinite(result.modulus).all() and (result.modulus > 0).all()
        assert result.status in ("converged", "max_iterations", "stalled", "failed") and result.message


def test_bounds_without_an_order_and_uncertainties_that_are_none_are_refused():
    m = ef.Measurement(SMALL, ef.PlaneStress(0.45), LOAD, U, 1e-7)
    for bounds in ({1e3: "low", 1e5: "high"}, {1e3, 1e5}):
        with pytest.raises(TypeError, match=r"bounds must be a pair \(low, high\)"):
            ef.reconstruct(m, prior="tv", bounds=bounds, max_iterations=1)
    result = ef.reconstruct(m, prior="tv", max_iterations=1)
    with pytest.raises(TypeError, match=r"uncertainty must be what .* gives, got int"):
        result.uncertainty = 3
    assert result.uncertainty is None and result.std is None
