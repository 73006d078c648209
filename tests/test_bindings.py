"""The compiled modules: arrays that do not fit are refused, and the stubs say what the modules have."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import device
import numpy as np
import pytest

import elastofast
from elastofast import _core
from elastofast.forward.form import ElasticForm
from elastofast.forward.krylov import semi_iteration
from elastofast.geometry import Grid
from elastofast.laws import PlaneStress

SHAPE = (5, 7)
N = 35
NEIGHBOURS = (3 * 5 - 2) * (3 * 7 - 2)  # pairs of nodes that share a cell, or are the same


@pytest.fixture
def form():
    return _core.GridForm(*SHAPE, 1e-3, 1e-3, 0.3, 0.4, False)


@pytest.fixture
def solver(form):
    fixed = np.zeros((2, N), np.uint8)
    fixed[:, :7] = 1
    return _core.Multigrid(form, np.ones(N), fixed, None, -1, semi_iteration(0.1, 1.0, 3))


def row_starts(shape=SHAPE, columns=2):
    backend = ElasticForm(Grid(shape, (1e-3, 1e-3)), PlaneStress(0.3)).backend
    pattern = backend.stiffness(np.ones(shape[0] * shape[1])) if columns == 2 else backend.contraction(np.ones((2, N)))
    return pattern.indptr.astype(np.int64)


def calls(form, solver, dtype=np.float64):
    """Every call that writes into an array: the function, its other arguments, shape and dtype of the written array."""
    x, u, b = np.ones((1, N), dtype), np.ones((3, 2, N), dtype), np.ones((2, N))
    return {
        "force": (form.force, (x, u), (3, 2, N), dtype),
        "sensitivity": (form.sensitivity, (u, u), (3, N), dtype),
        "stiffness_values": (form.stiffness_values, (x[0], row_starts()), (4 * NEIGHBOURS,), dtype),
        "contraction_values": (form.contraction_values, (u[0], row_starts(columns=1)), (2 * NEIGHBOURS,), dtype),
        "solve": (lambda b, out: solver.solve(b, out, 1e-8, 100, False), (b,), (2, N), np.float64),
    }


WRITERS = ["force", "sensitivity", "stiffness_values", "contraction_values", "solve"]
OTHER = {np.float64: np.float32, np.float32: np.float64}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_output_that_does_not_fit_is_refused_and_left_alone(form, solver, name, dtype):
    function, arguments, shape, dtype = calls(form, solver, dtype)[name]
    good = np.full(shape, -1, dtype)
    function(*arguments, good)
    assert not (good == -1).all()

    wide = np.full((*shape[:-1], 2 * shape[-1]), -1, dtype)
    locked = np.full(shape, -1, dtype)
    locked.flags.writeable = False
    misplaced = np.frombuffer(bytearray(good.nbytes + 1), np.uint8)[1:].view(dtype).reshape(shape)
    for out, error, message in (
        (np.full(shape, -1, OTHER[dtype]), TypeError, f"must be a writeable .* of {np.dtype(dtype)} and shape"),
        (np.full(shape, -1, np.int64), TypeError, "got one of int64"),
        (np.full(shape, -1, np.dtype(dtype).newbyteorder()), TypeError, "must be a writeable C-contiguous array"),
        (wide[..., ::2], ValueError, "not C-contiguous"),
        (misplaced, ValueError, "not C-contiguous and aligned"),
        (locked, ValueError, "read-only"),
        (np.full((*shape[:-1], shape[-1] - 1), -1, dtype), ValueError, "and shape"),
        (np.full((*shape[:-1], shape[-1] + 1), -1, dtype), ValueError, "and shape"),
        (np.full((1, *shape), -1, dtype), ValueError, "and shape"),
        (np.full(shape, -1, dtype).tolist(), TypeError, "incompatible function arguments"),
    ):
        before = np.array(out)
        with pytest.raises(error, match=message):
            function(*arguments, out)
        np.testing.assert_array_equal(out, before)


def test_fortran_order_is_refused(form, solver):
    for name in ("force", "sensitivity", "solve"):
        function, arguments, shape, dtype = calls(form, solver)[name]
        with pytest.raises(ValueError, match="not C-contiguous"):
            function(*arguments, np.zeros(shape, dtype, order="F"))


@pytest.mark.parametrize("name", WRITERS)
def test_inputs_that_do_not_fit_are_refused(form, solver, name):
    function, arguments, shape, dtype = calls(form, solver)[name]
    for k, argument in enumerate(arguments):
        for wrong, error in (
            (argument.astype(np.float32), TypeError),
            (argument[..., :-1].copy(), ValueError),
            (np.repeat(argument, 2, axis=-1), ValueError),
            (np.repeat(argument, 2, axis=-1)[..., ::2], ValueError),
        ):
            with pytest.raises(error, match="must be a "):
                function(*arguments[:k], wrong, *arguments[k + 1 :], np.zeros(shape, dtype))


def test_precisions_do_not_mix(form):
    x, u = np.ones((1, N)), np.ones((1, 2, N))
    for mixed in (
        (x, np.float32(u), u),
        (np.float32(x), u, u),
        (x, u, np.float32(u)),
        (x, np.float32(u), np.float32(u)),
    ):
        with pytest.raises(TypeError, match=r"must be a (writeable )?C-contiguous array of float"):
            form.force(*mixed)


def test_moduli_must_be_one_or_as_many_as_displacements(form):
    u = np.ones((3, 2, N))
    for count in (1, 3):
        assert form.force(np.ones((count, N)), u, np.empty_like(u))
    for count in (0, 2, 4):
        with pytest.raises(ValueError, match=rf"x must be .* shape \(3, 35\), got one of .* shape \({count}, 35\)"):
            form.force(np.ones((count, N)), u, np.empty_like(u))


def test_row_starts_of_another_matrix_are_refused(form):
    x, u, values = np.ones(N), np.ones((2, N)), np.empty(4 * NEIGHBOURS)
    for starts in (row_starts((7, 5)), row_starts(columns=1), np.zeros(2 * N + 1, np.int64)):
        with pytest.raises(ValueError, match="row starts"):
            form.stiffness_values(x, starts, values)
    for starts in (row_starts(), row_starts(columns=1)[::-1].copy()):
        with pytest.raises(ValueError, match="row starts"):
            form.contraction_values(u, starts, values[: 2 * NEIGHBOURS])


def test_solvers_refuse_what_does_not_fit(form):
    x, fixed, steps = np.ones(N), np.zeros((2, N), np.uint8), [(0.0, 1.0)]
    fixed[0, :2] = 1
    shift = np.ones((2, N))
    solver = _core.Multigrid(form, x, fixed, shift, 1, steps)
    for arguments, error, message in (
        ((np.float32(x), fixed, None, -1, steps), TypeError, "x must be a C-contiguous array of float64"),
        ((x[:-1], fixed, None, -1, steps), ValueError, "x must be"),
        ((x, fixed.astype(bool), None, -1, steps), TypeError, "fixed must be a C-contiguous array of uint8"),
        ((x, fixed[:1], None, -1, steps), ValueError, "fixed must be"),
        ((x, fixed, np.float32(shift), -1, steps), TypeError, "shift must be"),
        ((x, fixed, shift[:, ::-1], -1, steps), ValueError, "shift must be .* not C-contiguous"),
        ((x, fixed, None, 2, steps), ValueError, "deflated_dof must be -1 or the number of a fixed dof"),
        ((x, fixed, None, 2 * N, steps), ValueError, "deflated_dof"),
        ((x, fixed, None, -2, steps), ValueError, "deflated_dof"),
        ((x, fixed, None, -1, []), ValueError, "smoother must have at least one step"),
    ):
        with pytest.raises(error, match=message):
            _core.Multigrid(form, *arguments)
    for call in (lambda a: solver.accelerated(a, steps), solver.apply, solver.deflate):
        for wrong, error in ((np.float32(shift), TypeError), (shift[:1], ValueError), (shift.T.copy().T, ValueError)):
            with pytest.raises(error, match=r"must be a C-contiguous array of float64 and shape \(2, 35\)"):
                call(wrong)
    with pytest.raises(ValueError, match="steps must not be empty"):
        solver.accelerated(shift, [])
    with pytest.raises(ValueError, match="no deflated dof"):
        _core.Multigrid(form, x, fixed, None, -1, steps).deflate(shift)
    with pytest.raises(ValueError, match="at least 2 x 2 nodes"):
        _core.GridForm(1, 7, 1e-3, 1e-3, 0.3, 0.4, False)


def test_plans_for_a_device_refuse_what_does_not_fit():
    kernels = device.host_executor()
    form, fixed, steps = kernels.GridForm(*SHAPE, 1e-3, 1e-3, 0.3, 0.4, False), np.zeros((2, N), np.uint8), [(0.0, 1.0)]
    kernels.Multigrid(form, fixed, False, -1, 1, steps)
    for arguments, error, message in (
        ((fixed.astype(bool), False, -1, 1, steps), TypeError, "fixed must be a C-contiguous array of uint8"),
        ((fixed[:, 1:], False, -1, 1, steps), ValueError, "fixed must be"),
        ((fixed, False, 0, 1, steps), ValueError, "deflated_dof"),
        ((fixed, False, -1, 0, steps), ValueError, "batch must be positive"),
        ((fixed, False, -1, 1, []), ValueError, "1 to 16 steps"),
        ((fixed, False, -1, 1, 17 * steps), ValueError, "1 to 16 steps"),
    ):
        with pytest.raises(error, match=message):
            kernels.Multigrid(form, *arguments)


def test_a_guess_in_any_order_is_taken():
    """A solve works on a copy of its guess, in the layout that the core writes to."""
    form = ElasticForm(Grid(SHAPE, (1e-3, 1e-3)), PlaneStress(0.3))
    active = np.ones((2, N), bool)
    active[:, :7] = False
    solver, b = form.solver(np.ones(N), active), np.random.default_rng(0).normal(size=(2, N))
    expected = solver.solve(b).value
    again = solver.solve(b, x0=np.asfortranarray(expected))
    assert again.iterations == 0
    np.testing.assert_array_equal(again.value, expected)


# ---------------------------------------------------------------- stubs


def stub_signatures(name):
    """Parameter names by function of a stub, ``Class.method`` for methods; None for a property."""
    tree = ast.parse((Path(elastofast.__file__).parent / f"{name}.pyi").read_text())
    found = {}
    for prefix, body in [("", tree.body), *((f"{c.name}.", c.body) for c in tree.body if isinstance(c, ast.ClassDef))]:
        for f in body:
            if isinstance(f, ast.FunctionDef):
                found[prefix + f.name] = None if f.decorator_list else [a.arg for a in f.args.args]
    return found


def module_signatures(module):
    """The same of a compiled module, from the first line of its docstrings."""
    found = {}
    for prefix, owner in [("", module), *((f"{k}.", c) for k, c in vars(module).items() if isinstance(c, type))]:
        for name, value in vars(owner).items():
            if name == "__init__" or (not name.startswith("_") and not isinstance(value, type)):
                found[prefix + name] = None if isinstance(value, property) else parameters(value)
    return found


def parameters(function):
    signature = function.__doc__.partition("\n")[0]
    return [a.arg for a in ast.parse(f"def {signature}: ...").body[0].args.args]


def test_core_stub_matches_the_module():
    assert stub_signatures("_core") == module_signatures(_core)


def test_cuda_stub_matches_the_module():
    found = module_signatures(device.host_executor())
    only_cuda = {"Queue.__init__", "device_count", "build_info"}
    stub = stub_signatures("_cuda")
    assert {k: v for k, v in stub.items() if k not in only_cuda} == {
        k: v for k, v in found.items() if k not in only_cuda
    }
    spec = importlib.util.find_spec("elastofast._cuda")
    if spec and Path(spec.origin).parent == Path(elastofast.__file__).parent:  # built from these sources
        from elastofast import _cuda

        assert stub == module_signatures(_cuda)


def test_stubtest_agrees(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    allowed = tmp_path / "allowed"
    classes = "GridForm", "Multigrid", "VolumeForm", "VolumePlan", "VolumeMultigrid"
    allowed.write_text("".join(f"elastofast._core.{name}\n" for name in classes))  # their metaclass is pybind11's own
    options = ["--allowlist", allowed, "--ignore-unused-allowlist"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, "elastofast._core"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(elastofast.__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
