"""The contractions of the trilinear form: ``pytest benchmarks --benchmark-only``, see docs/profiling.md."""

import numpy as np
import peers
import pytest
from side_by_side import LAWS, mesh_problem, problem

from elastofast import _core
from elastofast.backend.processors import processors

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=3, warmup=True, warmup_iterations=1)
laws = pytest.mark.parametrize("law", LAWS)
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
powers = pytest.mark.parametrize(
    "threads", sorted({1, 2, 4, 8, processors()} & {*range(1, processors() + 1)}), indirect=True
)


def fields(form, dtype="float64", count=2):
    return np.random.default_rng(0).normal(size=(count, *form.dof_shape)).astype(dtype)


@pytest.mark.parametrize("method", ["elastofast", "scipy CSR", "torch CSR"])
@dtypes
@laws
def test_force(measure, n, law, dtype, method):
    """K(x) u; the peers get the matrix for nothing."""
    form, x, _ = problem(n, LAWS[law])
    x, (u, _) = x.astype(dtype), fields(form, dtype)
    ours, matrix = form.force(x, u), form.stiffness(x)
    of_matrix = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes + 2 * u.nbytes
    group, size = f"force: {law}, {n} x {n}, {dtype}", {"dofs": u.size}
    if method == "elastofast":
        measure(group, form.force, x, u, moved=x.nbytes + 2 * u.nbytes, **size)
        return
    if method == "scipy CSR":
        answer = measure(group, matrix.__matmul__, u.ravel(), moved=of_matrix, **size)
    else:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        torch.set_num_threads(_core.get_num_threads())
        parts = (torch.from_numpy(np.asarray(a)) for a in (matrix.indptr, matrix.indices, matrix.data))
        tensor = torch.sparse_csr_tensor(*parts, size=matrix.shape)
        answer = measure(group, tensor.matmul, torch.from_numpy(u.ravel()), moved=of_matrix, **size).numpy()
    np.testing.assert_allclose(answer, ours.ravel(), atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("method", ["elastofast", "scipy CSR"])
@dtypes
@laws
def test_sensitivity(measure, n, law, dtype, method):
    """D(u)^T v; the peer gets the matrix for nothing, although u is another one in every step of an optimiser."""
    form, _, _ = problem(n, LAWS[law])
    u, v = fields(form, dtype)
    group, size = f"sensitivity: {law}, {n} x {n}, {dtype}", {"dofs": u.size}
    if method == "elastofast":
        measure(group, form.sensitivity, u, v, moved=2 * u.nbytes + u.nbytes // 2, **size)
        return
    matrix = form.contraction(u).T.tocsr()
    moved = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes + u.nbytes + u.nbytes // 2
    answer, ours = measure(group, matrix.__matmul__, v.ravel(), moved=moved, **size), form.sensitivity(u, v)
    np.testing.assert_allclose(answer, ours.ravel(), atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("method", ["elastofast", "filling the values", *peers.ASSEMBLIES, "dolfinx"])
@laws
def test_stiffness(measure, request, n, law, method):
    """K(x) for another x, where possible in a pattern that is there; "filling the values" is the least it costs."""
    form, x, _ = problem(n, LAWS[law])
    group, size = f"stiffness: {law}, {n} x {n}", {"dofs": 2 * x.size}
    matrix = form.stiffness(x)
    if method == "elastofast":
        measure(group, form.stiffness, x, out=matrix, moved=matrix.data.nbytes + x.nbytes, **size)
        return
    if method == "filling the values":
        measure(group, matrix.data.fill, 1.0, moved=matrix.data.nbytes, **size)
        return
    if method == "dolfinx":
        remote = peers.dolfinx(request.getfixturevalue("other_python"), form, x)
        norm = remote.ready["norm"]
        measure(group, remote, **size)
        remote.close()
    else:
        make, module = peers.ASSEMBLIES[method]
        peers.needed(method, module, n)
        if method == "torch-fem":
            x = np.full_like(x, x.mean())
        assemble, norm_of = make(form, x)
        norm = norm_of(measure(group, assemble, **size))
    np.testing.assert_allclose(norm, np.linalg.norm(form.stiffness(x).data), rtol=1e-10)


@laws
def test_contraction(measure, n, law):
    """D(u) as a sparse matrix, in a pattern that is there."""
    form, x, _ = problem(n, LAWS[law])
    u, _ = fields(form)
    matrix = form.contraction(u)
    moved = matrix.data.nbytes + u.nbytes
    measure(f"contraction: {law}, {n} x {n}", form.contraction, u, out=matrix, dofs=2 * x.size, moved=moved)


@pytest.mark.parametrize("method", ["in one call", "one after the other"])
@pytest.mark.parametrize("batch", [8, 32])
def test_force_of_a_batch(measure, batch, method):
    """K(x) u of many moduli and displacements on 128 x 128 nodes."""
    form, x, _ = problem(128, LAWS["plane stress"])
    x, u = np.broadcast_to(x, (batch, *x.shape)).copy(), fields(form, count=batch)
    one_by_one = lambda x, u: [form.force(*pair) for pair in zip(x, u, strict=True)]  # noqa: E731
    call = form.force if method == "in one call" else one_by_one
    measure(f"force: batch of {batch}", call, x, u, dofs=u.size, moved=x.nbytes + 2 * u.nbytes)


@powers
def test_force_on_threads(measure, threads):
    """K(x) u on 512 x 512 nodes."""
    form, x, _ = problem(512, LAWS["plane stress"])
    u, _ = fields(form)
    measure("force: threads", form.force, x, u, dofs=u.size, moved=x.nbytes + 2 * u.nbytes)


@pytest.mark.parametrize("method", ["elastofast", "scipy CSR", "scikit-fem"])
@pytest.mark.parametrize("task", ["force", "stiffness"])
def test_mesh(measure, n, task, method):
    """K(x) u and K(x) on a mesh of triangles."""
    pytest.importorskip("numba", reason="meshes need numba")
    form, x, _ = mesh_problem(n)
    u, _ = fields(form)
    group, size = f"{task}: mesh of {n} x {n} nodes", {"dofs": u.size}
    matrix = form.stiffness(x)
    if method == "elastofast":
        if task == "force":
            measure(group, form.force, x, u, moved=x.nbytes + 2 * u.nbytes + form.geometry.cells.nbytes, **size)
        else:
            measure(group, form.stiffness, x, out=matrix, **size)
    elif method == "scipy CSR":
        if task == "stiffness":
            pytest.skip("SciPy assembles nothing")
        answer = measure(group, matrix.__matmul__, u.ravel(), **size)
        np.testing.assert_allclose(answer, form.force(x, u).ravel(), atol=1e-10 * np.abs(answer).max())
    elif task == "force":
        pytest.skip("scikit-fem multiplies by SciPy's matrix")
    else:
        peers.needed("scikit-fem", "skfem", n)
        assemble, norm_of = peers.scikit_fem(form, x)
        np.testing.assert_allclose(norm_of(measure(group, assemble, **size)), np.linalg.norm(matrix.data), rtol=1e-10)
