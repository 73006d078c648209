"""Fused pointwise functions: the same numbers everywhere, and the way to CuPy's kernels."""

import sys
from types import SimpleNamespace

import device
import numpy as np
import pytest

import elastofast as ef
from elastofast.backend.elementwise import BLOCK, fused
from elastofast.inversion import gauss_newton
from elastofast.priors import differences, variation


@fused
def mixed(xp, moved, factors, shift):
    """Of all kinds: an argument changed in place, a tuple, a number for each member."""
    a, b = factors
    moved *= a
    moved += shift
    return xp.where(moved > 0, xp.sqrt(a * a + b * b), 0.0), moved - b


def expected(moved, a, b, shift):
    moved = moved * a + shift
    return moved, np.where(moved > 0, np.hypot(a, b), 0), moved - b


@pytest.mark.parametrize("shape", [(5,), (2, 7), (3, BLOCK), (1, 2 * BLOCK + 3), (BLOCK + 1,)], ids=str)
def test_numpy_arrays_of_any_size_give_the_plain_result(monkeypatch, shape):
    monkeypatch.setitem(sys.modules, "cupy", None)  # to import it is an error
    x, a, b = np.random.default_rng(0).standard_normal((3, *shape))
    shift = np.arange(1.0, 1 + len(x))[:, None] if len(shape) == 2 else 0.25
    correct = expected(x, a, b, shift)
    found = mixed(x, (a, b), shift)
    for result, value in zip((x, *found), correct, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-14)


def test_results_are_as_the_function_gives_them():
    double, keep = fused(lambda xp, x: 2 * x), fused(lambda xp, x: None)
    for n in (3, 3 * BLOCK):
        x = np.arange(float(n))
        assert np.array_equal(double(x), 2 * np.arange(n)) and keep(x) is None
    assert double(1.5) == 3.0


def test_device_arrays_stay_there():
    x, a, b = np.random.default_rng(0).standard_normal((3, 2, 7))
    correct = expected(x, a, b, 0.25)
    there = [device.Library.asarray(v) for v in (x, a, b)]
    found = mixed(there[0], tuple(there[1:]), 0.25)
    for result, value in zip((there[0], *found), correct, strict=True):
        np.testing.assert_allclose(device.Library.asnumpy(result), value, rtol=1e-14)


def test_cupy_arrays_are_fused_once_for_each_form_of_arguments(monkeypatch):
    made = []

    def fuse(kernel_name):
        made.append(kernel_name)
        return lambda function: lambda *values: function(*values)

    cupy = SimpleNamespace(fuse=fuse)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    array = type("ndarray", (), {"__module__": "cupy"})

    @fused
    def pieces(xp, *arguments):
        return xp, arguments

    x, y, z = array(), array(), array()
    assert pieces((x, y), 2.0, z) == (cupy, ((x, y), 2.0, z))
    assert pieces((z, y), 3.0, x) == (cupy, ((z, y), 3.0, x))
    assert made == ["pieces"]
    assert pieces(1.0, (x,), (y, z)) == (cupy, (1.0, (x,), (y, z)))
    assert made == ["pieces", "pieces"]


class Lone(float):
    """A number that refuses to meet another one."""

    def _refuse(self, *other):
        assert any(isinstance(o, np.ndarray) and o.ndim for o in other), f"{self!r} meets {other}, not an array"
        return NotImplemented  # the array's turn

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _refuse
    __neg__ = __abs__ = _refuse


def test_numbers_meet_arrays_only(monkeypatch):
    """CuPy's fusion takes the product of two numbers in half precision."""
    called = set()

    def with_lone_numbers(name, function):
        def lone(a):
            return tuple(map(lone, a)) if isinstance(a, tuple) else Lone(a) if isinstance(a, float) else a

        def apply(*arguments):
            called.add(name)
            return function(*map(lone, arguments))

        return apply

    with pytest.raises(AssertionError, match="meets"):
        with_lone_numbers("", fused(lambda xp, x, s: x * (s * s)))(np.ones(3), 2.0)
    modules = (gauss_newton, differences, variation)
    for module in modules:
        for name, function in list(vars(module).items()):
            if hasattr(function, "__wrapped__"):
                monkeypatch.setattr(module, name, with_lone_numbers(name, function))
    grid = ef.Grid((20, 22), (1e-3, 1.3e-3))
    load, x = ef.compression(grid, pressure=100.0), np.full(grid.shape, 1e4)
    m = ef.simulate(grid, ef.PlaneStress(0.495), load, x, snr=35.0)
    for prior in ("tv", "tikhonov"):
        ef.reconstruct(m, prior, weight=10.0, max_iterations=2)
    fusions = {n for module in modules for n, f in vars(module).items() if getattr(f, "__name__", "") == "apply"}
    assert called == fusions | {""} and len(called) > 8
