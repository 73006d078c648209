"""The trilinear form: kernels on a `Grid` against the dense reference, and the checks around them."""

import numpy as np
import pytest
from dense import centre, dense_psi, gauss, scikit_fem_stiffness
from scipy.sparse import coo_array
from scipy.spatial import Delaunay

from elastofast import _core
from elastofast.boundary import rigid_modes
from elastofast.forward.form import ElasticForm
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress, Solid

LAWS = [PlaneStress(0.3), PlaneStress(0.495), PlaneStrain(0.495)]
SMALL = [((2, 2), (1e-3, 1e-3)), ((2, 9), (2e-3, 5e-4)), ((9, 2), (1e-3, 3e-3)), ((3, 4), (7e-4, 2e-3))]
WIDE = [((17, 70), (1e-3, 2e-3)), ((5, 300), (3e-3, 1e-3))]  # wider than the strips of the kernels
PRECISION = [(np.float64, 1e-12), (np.float32, 1e-5)]
ISA = _core.build_info()["instruction_sets"]


@pytest.fixture(params=ISA)
def instruction_set(request):
    before = _core.build_info()["instruction_set"]
    _core.select_instruction_set(request.param)
    yield request.param
    _core.select_instruction_set(before)


@pytest.fixture
def threads():
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


def fields(geometry, batch=(), dtype=np.float64, seed=1):
    """Modulus and two displacements in the layout of the geometry."""
    rng = np.random.default_rng(seed)
    nodes, d = geometry.node_shape, geometry.dim
    x = rng.uniform(5e3, 5e4, (*batch, *nodes)).astype(dtype)
    u, v = (1e-4 * rng.standard_normal((2, *batch, d, *nodes))).astype(dtype)
    return x, u, v


def relative(a, b):
    return np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b)


class Reference:
    """The form of a wide grid, cell by cell from the dense reference of one cell (all cells are alike)."""

    def __init__(self, grid, law):
        self.psi = dense_psi(Grid((2, 2), grid.spacing), law)
        n0, n1 = grid.shape
        first = (np.arange(n0 - 1)[:, None] * n1 + np.arange(n1 - 1)).ravel()
        self.nodes = first[:, None] + np.array([0, 1, n1, n1 + 1])
        self.dofs = np.concatenate([self.nodes, self.nodes + grid.n_nodes], axis=1)
        self.n = grid.n_nodes

    def sensitivity(self, u, v):
        local = np.einsum("ci,nij,cj->cn", v.ravel()[self.dofs], self.psi, u.ravel()[self.dofs])
        return np.bincount(self.nodes.ravel(), local.ravel(), minlength=self.n)

    def stiffness(self, x):
        local = np.einsum("cn,nij->cij", x.ravel()[self.nodes], self.psi)
        rows = np.broadcast_to(self.dofs[:, :, None], local.shape)
        columns = np.broadcast_to(self.dofs[:, None, :], local.shape)
        return coo_array((local.ravel(), (rows.ravel(), columns.ravel())), shape=(2 * self.n,) * 2).tocsr()

    def contraction(self, u):
        local = np.einsum("nij,cj->cin", self.psi, u.ravel()[self.dofs])
        rows = np.broadcast_to(self.dofs[:, :, None], local.shape)
        columns = np.broadcast_to(self.nodes[:, None, :], local.shape)
        return coo_array((local.ravel(), (rows.ravel(), columns.ravel())), shape=(2 * self.n, self.n)).tocsr()


# ---------------------------------------------------------------- kernels against the reference


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize(("shape", "spacing"), SMALL)
def test_contractions_are_the_dense_ones(shape, spacing, law, dtype, tolerance, instruction_set):
    form = ElasticForm(Grid(shape, spacing), law)
    psi = dense_psi(form.geometry, law)
    x, u, v = fields(form.geometry, (), dtype)
    xx, uu, vv = (a.ravel().astype(float) for a in (x, u, v))
    results = form.force(x, u), form.sensitivity(u, v), form.stiffness(x), form.contraction(u)
    assert {a.dtype for a in results} == {np.dtype(dtype)}
    force, sensitivity, stiffness, contraction = results
    assert force.shape == u.shape and sensitivity.shape == x.shape
    assert relative(force.ravel(), np.einsum("n,nij,j->i", xx, psi, uu)) < tolerance
    assert relative(sensitivity.ravel(), np.einsum("i,nij,j->n", vv, psi, uu)) < tolerance
    assert relative(stiffness.toarray(), np.einsum("n,nij->ij", xx, psi)) < tolerance
    assert relative(contraction.toarray(), np.einsum("nij,j->in", psi, uu)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("law", LAWS[1:], ids=repr)
@pytest.mark.parametrize(("shape", "spacing"), WIDE)
def test_contractions_on_wide_grids_are_the_dense_ones(shape, spacing, law, dtype, tolerance, instruction_set):
    """Entry by entry, so that one wrong value at the seam of two strips shows."""
    form = ElasticForm(Grid(shape, spacing), law)
    reference = Reference(form.geometry, law)
    x, u, v = fields(form.geometry, (), dtype)
    xx, uu, vv = (a.astype(float) for a in (x, u, v))

    def check(result, expected):
        assert np.abs(result - expected).max() < tolerance * np.abs(expected).max()

    k, d = reference.stiffness(xx), reference.contraction(uu)
    check(form.force(x, u).ravel(), k @ uu.ravel())
    check(form.sensitivity(u, v).ravel(), reference.sensitivity(uu, vv))
    check(form.stiffness(x).toarray(), k.toarray())
    check(form.contraction(u).toarray(), d.toarray())


def test_reference_of_wide_grids_is_the_dense_one():
    grid, law = Grid((3, 4), (7e-4, 2e-3)), PlaneStrain(0.495)
    x, u, v = fields(grid)
    psi, reference = dense_psi(grid, law), Reference(grid, law)
    assert relative(reference.stiffness(x).toarray(), np.einsum("n,nij->ij", x.ravel(), psi)) < 1e-15
    assert relative(reference.contraction(u).toarray(), np.einsum("nij,j->in", psi, u.ravel())) < 1e-15
    assert relative(reference.sensitivity(u, v), np.einsum("i,nij,j->n", v.ravel(), psi, u.ravel())) < 1e-14


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("kind", ["grid", "mesh"])
@pytest.mark.parametrize(
    ("xb", "ub", "vb"),
    [((1,), (1,), (1,)), ((3,), (3,), (3,)), ((), (3,), ()), ((3,), (), (3,)), ((2, 1), (3,), (2, 3)), ((0,),) * 3],
)
def test_batches_broadcast(kind, xb, ub, vb, dtype, tolerance):
    geometry = Grid((5, 4), (1e-3, 2e-3))
    if kind == "mesh":
        geometry = Mesh(geometry.points, Delaunay(geometry.points).simplices)
    form = ElasticForm(geometry, PlaneStrain(0.4))
    psi = dense_psi(geometry, form.law)
    nodes = geometry.node_shape
    rng = np.random.default_rng(2)
    x = rng.uniform(1e4, 5e4, (*xb, *nodes)).astype(dtype)
    u = (1e-4 * rng.standard_normal((*ub, 2, *nodes))).astype(dtype)
    v = (1e-4 * rng.standard_normal((*vb, 2, *nodes))).astype(dtype)

    for layout in (nodes, (geometry.n_nodes,)):
        xl, ul, vl = x.reshape(*xb, *layout), u.reshape(*ub, 2, *layout), v.reshape(*vb, 2, *layout)
        n = geometry.n_nodes
        xx = x.reshape(*xb, n).astype(float)
        uu, vv = u.reshape(*ub, 2 * n).astype(float), v.reshape(*vb, 2 * n).astype(float)
        force, sensitivity = form.force(xl, ul), form.sensitivity(ul, vl)
        batch = np.broadcast_shapes(xb, ub)
        assert force.shape == (*batch, 2, *layout)
        expected = np.einsum("...n,nij,...j->...i", xx, psi, uu, optimize=True)
        np.testing.assert_allclose(
            force.reshape(expected.shape), expected, rtol=0, atol=tolerance * np.abs(expected).max(initial=0)
        )
        batch = np.broadcast_shapes(ub, vb)
        assert sensitivity.shape == (*batch, *layout)
        expected = np.einsum("...i,nij,...j->...n", vv, psi, uu, optimize=True)
        scale = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(sensitivity.reshape(expected.shape), expected, rtol=0, atol=tolerance * scale)


def test_layouts_can_be_mixed_and_strided():
    """The displacement decides about the layout of the result; views of any strides are read correctly."""
    form = ElasticForm(Grid((5, 4), (1e-3, 2e-3)), PlaneStress(0.3))
    x, u, v = fields(form.geometry)
    force = form.force(x, u)
    assert np.array_equal(form.force(x.ravel(), u), force)
    assert np.array_equal(form.force(x, u.reshape(2, -1)), force.reshape(2, -1))
    assert np.array_equal(form.force(np.asfortranarray(x), np.repeat(u, 2, axis=2)[:, :, ::2]), force)
    assert np.array_equal(form.sensitivity(u.reshape(2, -1), v), form.sensitivity(u, v).ravel())
    integers = np.arange(20).reshape(5, 4)
    assert np.array_equal(form.force(integers, u), form.force(integers.astype(float), u))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("law", LAWS[1:], ids=repr)
def test_results_do_not_depend_on_the_number_of_threads(law, dtype, threads):
    form = ElasticForm(Grid((131, 257), (1e-3, 1e-3)), law)
    x, u, v = fields(form.geometry, (2,), dtype)

    def results():
        yield from (form.force(x, u), form.sensitivity(u, v), form.force(x[0], u[0]), form.sensitivity(u[0], v[0]))
        yield from (form.stiffness(x[0]).data, form.contraction(u[0]).data)

    threads(1)
    expected = list(results())
    for count in (2, 3):
        threads(count)
        for a, b in zip(results(), expected, strict=True):
            assert np.array_equal(a, b)


# ---------------------------------------------------------------- sparse matrices


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_dofs_are_numbered_component_by_component(law):
    form = ElasticForm(Grid((7, 11), (1e-3, 2e-3)), law)
    x, u, _ = fields(form.geometry)
    force = form.force(x, u)
    np.testing.assert_allclose(form.stiffness(x) @ u.ravel(), force.ravel(), atol=1e-13 * np.abs(force).max())
    np.testing.assert_allclose(form.contraction(u) @ x.ravel(), force.ravel(), atol=1e-13 * np.abs(force).max())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_patterns_are_shared_and_out_is_refilled(dtype):
    form = ElasticForm(Grid((6, 9), (1e-3, 2e-3)), PlaneStrain(0.495))
    (x1, u1, _), (x2, u2, _) = fields(form.geometry, (), dtype, 1), fields(form.geometry, (), dtype, 2)
    for method, first, second in ((form.stiffness, x1, x2), (form.contraction, u1, u2)):
        a, b = method(first), method(second)
        assert np.shares_memory(a.indices, b.indices) and np.shares_memory(a.indptr, b.indptr)
        assert not np.shares_memory(a.data, b.data)
        assert a.has_canonical_format
        for start, stop in zip(a.indptr, a.indptr[1:], strict=False):
            assert (np.diff(a.indices[start:stop]) > 0).all()
        data = a.data
        data[:] = np.nan  # every value must be written
        assert method(second, out=a) is a and a.data is data
        assert np.array_equal(a.data, b.data)
        with pytest.raises(ValueError, match="read-only"):
            a.indices[0] = 1


@pytest.mark.parametrize("law", [PlaneStress(0.3), PlaneStress(0.495), PlaneStrain(0.3), PlaneStrain(0.495)], ids=repr)
@pytest.mark.parametrize(("shape", "spacing"), [((30, 41), (1e-3, 1e-3)), ((13, 70), (2e-3, 5e-4))])
def test_stiffness_is_that_of_scikit_fem(law, shape, spacing):
    """Bilinear modulus, 2 x 2 Gauss points; in plane strain the lambda term by the cell's centre."""
    pytest.importorskip("skfem")
    grid = Grid(shape, spacing)
    x, volumetric = fields(grid)[0], centre(2) if law.name == "plane_strain" else gauss(2)
    expected = scikit_fem_stiffness(grid, law, x, full=gauss(2), volumetric=volumetric)
    difference = abs(ElasticForm(grid, law).stiffness(x) - expected)
    assert difference.max() <= 1e-12 * abs(expected).max()


# ---------------------------------------------------------------- identities of mechanics


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("gradient", np.eye(4).reshape(4, 2, 2))
def test_linear_displacement_has_the_constant_traction_on_its_edges(law, gradient):
    """Linear displacement at constant modulus: no force inside, the constant traction on the edges."""
    grid, modulus = Grid((6, 9), (2e-3, 1e-3)), 2e4
    form = ElasticForm(grid, law)
    u = 1e-2 * (grid.points @ gradient.T).T.reshape(form.dof_shape)
    force = form.force(np.full(grid.shape, modulus), u)
    strain = 1e-2 * (gradient + gradient.T) / 2
    stress = modulus * (law.lame_lambda * np.trace(strain) * np.eye(2) + 2 * law.lame_mu * strain)
    expected = np.zeros(form.dof_shape)
    for axis in range(2):  # the face's length that belongs to each node, times stress . normal
        length = np.full(grid.shape[1 - axis], grid.spacing[1 - axis])
        length[[0, -1]] /= 2
        faces = np.moveaxis(expected, axis + 1, -1)
        faces[..., 0] -= np.multiply.outer(stress[:, axis], length)
        faces[..., -1] += np.multiply.outer(stress[:, axis], length)
    np.testing.assert_allclose(force, expected, atol=1e-12 * np.abs(stress).max() * max(grid.spacing))


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_rigid_motions_need_no_force(law):
    form = ElasticForm(Grid((9, 14), (1e-3, 2e-3)), law)
    x, u, _ = fields(form.geometry)
    modes = rigid_modes(form.geometry)
    scale = np.abs(form.force(x, u)).max() / np.abs(u).max()
    assert np.abs(form.force(x, modes)).max() < 1e-13 * scale
    k = abs(form.stiffness(x) @ modes.reshape(3, -1).T).max()
    assert k < 1e-13 * scale


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("shape", [(9, 14), (67, 130)])
def test_one_form_four_contractions(law, shape):
    """v^T K(x) u = u^T K(x) v = x . D(u)^T v, and every method is linear in every slot."""
    form = ElasticForm(Grid(shape, (1e-3, 2e-3)), law)
    x, u, v = fields(form.geometry)
    y, w, _ = fields(form.geometry, seed=7)
    force = form.force(x, u)
    value, scale = np.vdot(v, force), np.linalg.norm(v) * np.linalg.norm(force)
    for other in (
        np.vdot(u, form.force(x, v)),
        np.vdot(x, form.sensitivity(u, v)),
        np.vdot(x, form.sensitivity(v, u)),
        v.ravel() @ (form.contraction(u) @ x.ravel()),
    ):
        assert abs(other - value) < 1e-13 * scale
    assert (
        relative(
            form.force(2 * x - 3 * y, u - 4 * w),
            2 * form.force(x, u) - 8 * form.force(x, w) - 3 * form.force(y, u) + 12 * form.force(y, w),
        )
        < 1e-13
    )
    k = form.stiffness(x)
    assert abs(k - k.T).max() < 1e-14 * abs(k).max()
    assert np.vdot(u, force) > 0


# ---------------------------------------------------------------- messages


GRID = Grid((4, 5), (1e-3, 1e-3))


@pytest.fixture
def form():
    return ElasticForm(GRID, PlaneStress(0.3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(form, bad):
    x, u, v = fields(GRID)
    broken_x, broken_u = x.copy(), u.copy()
    broken_x[1, 2] = broken_u[1, 2, 3] = bad
    calls = {
        "x": [lambda: form.force(broken_x, u), lambda: form.stiffness(broken_x)],
        "u": [lambda: form.force(x, broken_u), lambda: form.contraction(broken_u),
              lambda: form.sensitivity(broken_u, v)],
        "v": [lambda: form.sensitivity(u, broken_u)],
    }  # fmt: skip
    for name, several in calls.items():
        for call in several:
            with pytest.raises(ValueError, match=rf"{name} must be finite, 1 of its \d+ values are NaN or inf"):
                call()


def test_large_finite_values_are_no_error(form):
    x, u, _ = fields(GRID, (), np.float32)
    assert np.isfinite(form.force(x * np.float32(1e20), u * np.float32(1e4))).all()


def test_shapes_that_do_not_fit_are_named(form):
    x, u, v = fields(GRID)
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 4, 5\) or \(\.\.\., 20\), got \(5, 4\)"):
        form.force(x.T, u)
    with pytest.raises(ValueError, match=r"u must have shape \(\.\.\., 2, 4, 5\) or .* got \(4, 5, 2\)"):
        form.force(x, np.moveaxis(u, 0, -1))
    with pytest.raises(ValueError, match=r"v must have shape .* got \(3, 4, 5\)"):
        form.sensitivity(u, np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match=r"x must have shape .* got \(\)"):
        form.stiffness(1.0)
    with pytest.raises(ValueError, match=r"batch axes of x \(3,\) and u \(2,\) do not broadcast"):
        form.force(np.stack([x] * 3), np.stack([u] * 2))
    with pytest.raises(ValueError, match=r"batch axes of u \(3,\) and v \(2,\) do not broadcast"):
        form.sensitivity(np.stack([u] * 3), np.stack([v] * 2))
    with pytest.raises(ValueError, match=r"x must be one field of shape \(4, 5\), got a batch of shape \(3,\)"):
        form.stiffness(np.stack([x] * 3))
    with pytest.raises(ValueError, match=r"u must be one field of shape \(2, 4, 5\), got a batch"):
        form.contraction(np.stack([u] * 3))


def test_dtypes_that_are_not_real_or_differ_are_refused(form):
    x, u, v = fields(GRID)
    for bad in (x.astype(complex), x > 0, x.astype(object), x.astype("U8")):
        with pytest.raises(TypeError, match=rf"x must hold real numbers .* got dtype {bad.dtype}"):
            form.force(bad, u)
    with pytest.raises(TypeError, match=r"u must hold real numbers .* got dtype complex64"):
        form.sensitivity(u.astype(np.complex64), v)
    with pytest.raises(TypeError, match="x and u must have one dtype, got float32 and float64"):
        form.force(x.astype(np.float32), u)
    with pytest.raises(TypeError, match="u and v must have one dtype, got float64 and float32"):
        form.sensitivity(u, v.astype(np.float32))


def test_device_arrays_are_refused(form):
    class Elsewhere:
        def __array__(self, *_, **__):
            raise TypeError("can't convert a cuda tensor to numpy")

    with pytest.raises(TypeError, match="x must be an array in host memory, got Elsewhere: can't convert"):
        form.force(Elsewhere(), np.zeros((2, 4, 5)))


@pytest.mark.parametrize("geometry", [GRID, Mesh(GRID.points, Delaunay(GRID.points).simplices)], ids=repr)
def test_out_must_be_a_matrix_of_the_same_form(geometry):
    form, other = (ElasticForm(geometry, PlaneStress(0.3)) for _ in range(2))
    x, u, _ = fields(geometry)
    message = "out must be a matrix that this form returned"
    for call in (
        lambda: form.stiffness(x, out=other.stiffness(x)),
        lambda: form.contraction(u, out=other.contraction(u)),
        lambda: form.contraction(u, out=form.stiffness(x)),
        lambda: form.stiffness(x.astype(np.float32), out=form.stiffness(x)),
        lambda: form.stiffness(x, out=np.zeros((40, 40))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_form_refuses_a_law_or_geometry_that_does_not_fit():
    with pytest.raises(ValueError, match="law Solid is 3-D, but the geometry is 2-D"):
        ElasticForm(GRID, Solid(0.3))
    with pytest.raises(TypeError, match="geometry must be a Grid or a Mesh, got tuple"):
        ElasticForm((4, 5), PlaneStress(0.3))
    with pytest.raises(TypeError, match="law must be PlaneStress, PlaneStrain or Solid, got float"):
        ElasticForm(GRID, 0.3)


def test_an_unknown_instruction_set_is_refused():
    assert ISA and _core.build_info()["instruction_set"] in ISA
    with pytest.raises(ValueError, match="unknown or unsupported instruction set abacus"):
        _core.select_instruction_set("abacus")
