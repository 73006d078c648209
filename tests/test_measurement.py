import numpy as np
import pytest

from elastofast.boundary import Boundary, compression
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress, Solid
from elastofast.measurement import Measurement

GRID = Grid((5, 4), (1e-3, 2e-3))
SHAPE = (2, 5, 4)
LAW = PlaneStress(0.495)
LOAD = compression(GRID, pressure=100.0)
U = np.random.default_rng(0).normal(size=SHAPE) * 1e-5


def measurement(**changes):
    arguments = {
        "geometry": GRID,
        "law": LAW,
        "load": LOAD,
        "displacement": U,
        "displacement_std": 1e-7,
    } | changes
    return Measurement(**arguments)


def test_keeps_what_it_was_given_as_read_only_float64():
    reference = np.full(GRID.shape, 10_000)
    m = measurement(displacement=U.astype(np.float32), force_std=1e-3, reference=reference)
    free = ~LOAD.fixed
    assert np.array_equal(m.displacement[free], U.astype(np.float32)[free])
    assert np.array_equal(m.reference, reference)
    assert np.array_equal(m.force_std, np.full(SHAPE, 1e-3))
    for a in (m.displacement, m.displacement_std, m.force_std, m.reference):
        assert a.dtype == np.float64
        with pytest.raises(ValueError):
            a[...] = 0
    assert reference.flags.writeable  # the caller's own arrays stay writeable


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        (2e-7, lambda: np.full(SHAPE, 2e-7)),
        ([1e-7, 3e-7], lambda: np.stack([np.full(GRID.shape, 1e-7), np.full(GRID.shape, 3e-7)])),
        (np.arange(1.0, 21).reshape(5, 4), lambda: np.stack([np.arange(1.0, 21).reshape(5, 4)] * 2)),
        (np.arange(1.0, 41).reshape(SHAPE), lambda: np.arange(1.0, 41).reshape(SHAPE)),
    ],
)
def test_standard_deviations_broadcast(std, expected):
    assert np.array_equal(measurement(displacement_std=std).displacement_std, expected())


def test_fixed_dofs_carry_the_loads_displacement():
    load = compression(GRID, strain=0.01)
    u = U.copy()
    u[load.fixed] = np.nan
    std = np.where(load.fixed, 0.0, 1e-7)  # known exactly
    m = measurement(load=load, displacement=u, displacement_std=std)
    assert np.array_equal(m.displacement[load.fixed], load.displacement[load.fixed])
    assert np.allclose(m.displacement[0, 0], 0.01 * 4e-3)


def test_what_was_not_measured_may_be_nan_and_becomes_zero():
    u, std = U.copy(), np.full(SHAPE, 1e-7)
    u[1, 2, 1], std[1, 2, 1] = np.nan, np.inf
    m = measurement(displacement=u, displacement_std=std)
    assert m.displacement[1, 2, 1] == 0
    assert np.isinf(m.displacement_std[1, 2, 1])


def test_a_whole_component_may_be_missing():
    u = U.copy()
    u[1] = np.nan
    m = measurement(displacement=u, displacement_std=[1e-7, np.inf])
    assert (m.displacement[1] == 0).all()


def test_standard_deviations_by_component_are_spread_over_a_mesh():
    mesh = Mesh([[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 1, 2], [1, 3, 2]])
    m = Measurement(mesh, PlaneStrain(0.3), compression(mesh, pressure=1.0), np.zeros((2, 4)), [1.0, 2.0])
    assert m.displacement_std.tolist() == [[1.0] * 4, [2.0] * 4]


def test_repr_says_what_it_is():
    assert "equations" in repr(measurement()) and "reference" not in repr(measurement())
    assert "with reference" in repr(measurement(reference=np.ones(GRID.shape)))


def nan_at(index):
    u = U.copy()
    u[index] = np.nan
    return u


BAD = [
    ({"geometry": "grid"}, TypeError, r"geometry must be a Grid or a Mesh, got str"),
    ({"law": "plane_stress"}, TypeError, r"law must be PlaneStress, PlaneStrain or Solid, got str"),
    ({"law": Solid(0.3)}, ValueError, r"law Solid is 3-D, but the geometry is 2-D"),
    ({"load": None}, TypeError, r"load must be a Boundary.*got NoneType"),
    ({"load": Boundary(fixed=np.ones((2, 3, 3), bool))}, ValueError, r"\(2, 3, 3\).*\(2, 5, 4\)"),
    ({"displacement": U[0]}, ValueError, r"displacement must have shape \(2, 5, 4\).*got \(5, 4\)"),
    ({"displacement": np.moveaxis(U, 0, -1)}, ValueError, r"numpy.moveaxis\(u, -1, 0\)"),
    (
        {"displacement": nan_at((0, 1, 2))},
        ValueError,
        r"displacement must be finite.*nan at index \(0, 1, 2\)",
    ),
    ({"displacement": U + 0j}, TypeError, r"displacement must hold real numbers, got dtype complex128"),
    ({"displacement": U.astype(object)}, TypeError, r"displacement must hold real numbers, got dtype object"),
    ({"displacement_std": 0.0}, ValueError, r"displacement_std must be positive.*got 0 at index"),
    ({"displacement_std": -1e-7}, ValueError, r"displacement_std must be positive.*got -1e-07"),
    ({"displacement_std": np.nan}, ValueError, r"displacement_std must be positive.*got nan"),
    ({"displacement_std": np.inf}, ValueError, r"nothing was measured"),
    (
        {"displacement_std": np.ones(3)},
        ValueError,
        r"displacement_std must be a scalar or have shape .*got \(3,\)",
    ),
    ({"force_std": -1.0}, ValueError, r"force_std must be finite and not negative \(newtons\), got -1"),
    ({"force_std": np.inf}, ValueError, r"force_std must be finite and not negative"),
    ({"force_std": np.ones(2)}, ValueError, r"force_std must be a scalar or have shape \(2, 5, 4\)"),
    (
        {"reference": np.ones((4, 5))},
        ValueError,
        r"reference must have one modulus per node.*\(5, 4\).*\(4, 5\)",
    ),
    (
        {"reference": np.zeros((5, 4))},
        ValueError,
        r"reference must be positive and finite \(pascals\), got 0",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_arguments_that_do_not_fit_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        measurement(**changes)


def test_arrays_on_a_device_are_refused():
    class OnDevice:  # CuPy arrays and CUDA tensors refuse like this
        def __array__(self, dtype=None, copy=None):
            raise TypeError("implicit conversion to a NumPy array is not allowed")

    with pytest.raises(TypeError, match="displacement must be an array in host memory, got OnDevice"):
        measurement(displacement=OnDevice())


def test_form_is_made_once():
    pytest.importorskip("elastofast._core")
    m = measurement()
    assert m.form is m.form
    assert m.form.geometry is GRID and m.form.law is LAW


# ---------------------------------------------------------------- doubtful values


WIDE = Grid((20, 20), (1e-3, 1e-3))


def pressed(**changes):
    """A field of 2 % axial strain that its own fixed bottom agrees with, with noise of 1e-6."""
    load = compression(WIDE, pressure=100.0)
    z, y = WIDE.points.T.reshape(2, *WIDE.shape)
    u = np.stack([2e-2 * (z.max() - z), 1e-2 * (y - y.mean())]) + 1e-6 * np.random.default_rng(0).normal(
        size=(2, 20, 20)
    )
    arguments = {"displacement": np.where(load.fixed, 0.0, u), "displacement_std": 1e-6} | changes
    return Measurement(WIDE, LAW, load, **arguments)


def test_plausible_fields_raise_no_warning(recwarn):
    pressed()
    assert not recwarn.list


@pytest.mark.parametrize("factor", [1e3, 100.0])
def test_displacements_in_other_units_are_refused(factor):
    with pytest.raises(
        ValueError, match=r"a strain of .* which no measurement has: displacement and geometry must both"
    ):
        pressed(displacement=factor * pressed().displacement, displacement_std=factor * 1e-6)


def test_large_and_tiny_strains_are_warned_about():
    u = pressed().displacement
    with pytest.warns(UserWarning, match="linear elasticity is no model for that"):
        pressed(displacement=20 * u)
    with pytest.warns(UserWarning, match="hardly a strain at all"):
        pressed(displacement=1e-7 * u, displacement_std=1e-13)


def test_values_that_contradict_the_support_are_warned_about():
    u = pressed().displacement.copy()
    u[0] += 1e-4  # the body has moved as a whole
    with pytest.warns(UserWarning, match=r"differs on 20 of them .* The support may have moved"):
        pressed(displacement=u)


@pytest.mark.parametrize("where", ["displacement", "displacement_std"])
def test_masked_values_were_not_measured(where):
    u, hole = pressed().displacement, np.zeros((2, 20, 20), bool)
    hole[:, 3:6, 4:9] = True
    junk = np.where(hole, 7.0, u)
    if where == "displacement":
        m = pressed(displacement=np.ma.array(junk, mask=hole))
    else:
        m = pressed(displacement=junk, displacement_std=np.ma.array(np.full(hole.shape, 1e-6), mask=hole))
    expected = pressed(displacement=np.where(hole, np.nan, u), displacement_std=np.where(hole, np.inf, 1e-6))
    assert np.array_equal(m.displacement, expected.displacement)
    assert np.array_equal(m.displacement_std, expected.displacement_std)


def test_missing_values_written_as_zeros_are_warned_about():
    u = pressed().displacement.copy()
    u[0, 3:7, 4:9] = 0
    with pytest.warns(UserWarning, match="component 0 of displacement is exactly zero at 20 nodes beside others"):
        pressed(displacement=u)
    u[1] = 0
    with pytest.warns(UserWarning, match="component 1 of displacement is zero at all its"):
        pressed(displacement=u)


def test_noise_far_above_the_field_counts_as_not_measured():
    m = pressed(displacement_std=[1e-6, 1.0])
    assert m.observed[0].sum() == 380 and not m.observed[1].any()
    assert pressed(displacement_std=[1e-6, 2e-6]).observed.sum() == 380 + 399
