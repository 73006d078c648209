"""A stand-in for a GPU: arrays that are as unwilling to mix with NumPy as CuPy's, and the device's kernels run by the
processor. What works on it does every index computation of the CUDA launches, and forgets no array on the host.
"""

import os
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pybind11
import scipy.ndimage
import scipy.sparse

from elastofast.backend import device as arrays


@cache
def host_executor():
    """The device's kernels as a module for the processor, compiled when the tests first want it."""
    root = Path(__file__).parents[1]
    target = root / "build" / "host_executor" / f"_host_executor{sysconfig.get_config_var('EXT_SUFFIX')}"
    newest = max(source.stat().st_mtime for source in (root / "csrc").rglob("*.*"))
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")  # tests may run side by side
        includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
        options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-s", "-fvisibility=hidden", *includes]
        compiler = os.environ.get("CXX", "c++").split()
        subprocess.run([*compiler, *options, root / "csrc/gpu/host_executor.cpp", "-o", made], check=True)
        made.replace(target)
    spec = spec_from_file_location("_host_executor", target)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in "device" memory; only `asnumpy` gets its values out."""

    def __init__(self, values):
        self.values = values

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return on_device(getattr(ufunc, method), *inputs, **options)

    def __array_function__(self, function, types, args, kwargs):
        return on_device(function, *args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__array"):  # the other ways into NumPy
            raise AttributeError(name)
        value = getattr(self.values, name)
        return (lambda *a, **k: on_device(value, *a, **k)) if callable(value) else wrap(value)

    def __getitem__(self, key):
        return on_device(self.values.__getitem__, key)

    def __setitem__(self, key, value):
        on_device(self.values.__setitem__, key, value)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return (wrap(v) for v in self.values)

    def __float__(self):
        return float(self.values)

    def __int__(self):
        return int(self.values)

    def __bool__(self):
        return bool(self.values)


def unwrap(value):
    if isinstance(value, DeviceArray):
        return value.values
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}: a NumPy array among device arrays")
    if isinstance(value, list | tuple):
        return type(value)(map(unwrap, value))
    return value


def wrap(value):
    if isinstance(value, np.ndarray | np.generic):
        return DeviceArray(np.asarray(value))
    return type(value)(map(wrap, value)) if isinstance(value, list | tuple) else value


def on_device(function, *args, **kwargs):
    kwargs = {k: unwrap(v) for k, v in kwargs.items()}
    return wrap(function(*map(unwrap, args), **kwargs))


class Library:
    """NumPy's functions on device arrays."""

    ndarray = DeviceArray
    float64, uint8 = np.float64, np.uint8
    linalg = SimpleNamespace(norm=lambda a: on_device(np.linalg.norm, a))

    def __getattr__(self, name):
        return lambda *a, **k: on_device(getattr(np, name), *a, **k)

    @staticmethod
    def asarray(value, dtype=None):  # the ways in and out
        values = value.values if isinstance(value, DeviceArray) else np.array(value)
        return DeviceArray(np.asarray(values, dtype))

    @staticmethod
    def array(value):
        return DeviceArray(np.array(value.values if isinstance(value, DeviceArray) else value))

    @staticmethod
    def from_dlpack(tensor):
        return DeviceArray(np.from_dlpack(tensor))

    @staticmethod
    def asnumpy(value):
        return value.values.copy()


class Filters:
    """SciPy's filters on device arrays."""

    def __getattr__(self, name):
        return lambda *a, **k: on_device(getattr(scipy.ndimage, name), *a, **k)


class Matrix:
    """Sparse matrix over device arrays."""

    def __init__(self, values, indices, indptr, shape):
        self.data, self.indices, self.shape, self.dtype = values, indices, shape, values.dtype
        self.host = scipy.sparse.csr_array((values.values, indices.values, indptr.values), shape=shape, copy=False)

    def __matmul__(self, vector):
        return on_device(self.host.__matmul__, vector)


@dataclass(frozen=True)
class TestDevice(arrays.Device):
    """Where device arrays live."""

    __test__ = False
    index: int = 0
    is_gpu = True
    xp = Library()
    ndimage = Filters()
    csr_type = Matrix
    csr = staticmethod(Matrix)

    def __str__(self):
        return "the test device"

    @property
    def kernels(self):
        return host_executor()

    def queue(self):
        return self.kernels.Queue()

    def address(self, array):
        if array is None:
            return 0
        assert array.values.flags.c_contiguous
        return array.values.ctypes.data

    def upload(self, host):
        return self.xp.asarray(host)

    def matrix(self, host):
        return Matrix(*(self.upload(a) for a in (host.data, host.indices, host.indptr)), host.shape)


DEVICE = TestDevice()


def install(monkeypatch):
    """Let `DeviceArray` decide, as CuPy arrays do; returns the way in and the way out."""
    original = arrays._device
    monkeypatch.setattr(arrays, "_device", lambda value: DEVICE if isinstance(value, DeviceArray) else original(value))
    return DEVICE.xp.asarray, DEVICE.xp.asnumpy
