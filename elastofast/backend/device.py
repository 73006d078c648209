"""Where arrays live decides where work is done: NumPy's and torch's CPU tensors on the processor, CuPy's and CUDA
tensors on their GPU.

A `Device` says where the arrays of one call live. Public functions ask `device_of` once, convert their arguments to
arrays of the device's own library (NumPy or CuPy) without copies, and return an array of the caller's kind.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

__all__ = ["HOST", "Device", "attribute_on", "device_of", "namespace", "to_host"]

MIN_CUPY = 14  # the oldest that is tested


@dataclass(frozen=True)
class Device:
    """Host memory."""

    def __str__(self):
        return "host memory (NumPy)"

    @property
    def is_gpu(self) -> bool:
        """Whether kernels run on a device."""
        return False

    @property
    def xp(self) -> Any:
        """The array library."""
        return np

    @property
    def native(self) -> Device:
        """The same place for the library's own arrays."""
        return self

    def activated(self):
        """Context in which the array library works on this device, and on the caller's current stream."""
        return nullcontext()

    def asarray(self, value):
        """The library's own array of an argument that lives here; others are left for `as_float` to judge."""
        return value

    def export(self, array):
        """An array as the caller's kind."""
        return array

    def address(self, array: Any) -> int:
        """Where a contiguous array begins."""
        return array.ctypes.data

    @property
    def kernels(self) -> Any:
        """The compiled kernels of a device."""
        raise TypeError("host memory has no device kernels")

    def queue(self) -> Any:
        """The current stream of a device, for launches."""
        raise TypeError("host memory has no stream")

    @property
    def csr_type(self) -> Any:
        """The library's type of sparse matrices (CSR)."""
        from scipy.sparse import csr_array

        return csr_array

    def csr(self, values: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> Any:
        """Sparse matrix over arrays that live here, without copies; columns must ascend in each row."""
        matrix = self.csr_type((values, indices, indptr), shape=shape, copy=False)
        matrix.has_canonical_format = True  # saves the library the check
        return matrix

    def matrix(self, host: Any) -> Any:
        """Copy of a sparse matrix (CSR) of the host, here the matrix itself."""
        return host

    def upload(self, host):
        """Copy of a host array, here the array itself."""
        return host

    def upload_broadcast(self, view):
        """A copy of a result of `numpy.broadcast_to` on the host; repeated values are copied once and repeated here."""
        once = tuple(slice(None) if stride else slice(1) for stride in view.strides)
        return self.xp.broadcast_to(self.upload(view[once]), view.shape)

    @property
    def linalg(self) -> Any:
        """The library's iterative methods and `LinearOperator`."""
        import scipy.sparse.linalg

        return scipy.sparse.linalg

    @property
    def ndimage(self) -> Any:
        """The library's filters."""
        import scipy.ndimage

        return scipy.ndimage


@dataclass(frozen=True)
class HostTensors(Device):
    """Host memory whose arrays the caller has as torch's tensors."""

    def __str__(self):
        return "cpu (torch)"

    @property
    def native(self):
        return HOST

    def asarray(self, value):
        return _without_graph(value).numpy() if library(value) == "torch" else value

    def export(self, array):
        import torch

        return torch.from_numpy(array) if library(array) == "numpy" else array


@dataclass(frozen=True)
class CudaDevice(Device):
    """Memory of one CUDA device; ``tensors`` if the caller's arrays are torch's, else CuPy's."""

    index: int
    tensors: bool = False

    def __str__(self):
        return f"cuda:{self.index} ({'torch' if self.tensors else 'CuPy'})"

    @property
    def is_gpu(self) -> bool:
        return True

    @property
    def xp(self):
        import cupy

        return cupy

    @property
    def native(self):
        return _cuda_device(self.index, False)

    def activated(self):
        if not self.tensors:
            return self.xp.cuda.Device(self.index)
        import torch

        return _TorchStream(self.xp, self.index, torch.cuda.current_stream(self.index).cuda_stream)

    def asarray(self, value):
        if value is None or library(value) == "cupy":
            return value
        return self.xp.from_dlpack(_without_graph(value)) if library(value) == "torch" else self.xp.asarray(value)

    def export(self, array):
        if not self.tensors or library(array) != "cupy":
            return array
        import torch

        return torch.from_dlpack(array)

    # What the grid's kernels need: their module, a queue on the caller's stream, addresses, sparse matrices and CG.

    @property
    def kernels(self):
        """The compiled kernels."""
        return _kernels(self)

    def queue(self):
        """The current stream, for launches."""
        return _queue(self, self.xp.cuda.get_current_stream().ptr)

    def address(self, array) -> int:
        """Where a contiguous array begins; 0 for None."""
        return 0 if array is None else array.data.ptr

    @property
    def csr_type(self):
        from cupyx.scipy.sparse import csr_matrix

        return csr_matrix

    def matrix(self, host):
        """Copy of a sparse matrix (CSR) from the host."""
        values, indices, indptr = map(self.upload, (host.data, host.indices, host.indptr))
        return self.csr(values, indices, indptr, host.shape)

    def upload(self, host):
        """Copy of a host array that streams other than the current one may read at once."""
        return self.xp.asarray(host, blocking=True)

    @property
    def linalg(self):
        import cupyx.scipy.sparse.linalg

        return cupyx.scipy.sparse.linalg

    @property
    def ndimage(self):
        import cupyx.scipy.ndimage

        return cupyx.scipy.ndimage


class _TorchStream:
    """CuPy's work on torch's current stream."""

    def __init__(self, xp, device, stream):
        self._contexts = xp.cuda.Device(device), xp.cuda.ExternalStream(stream, device)

    def __enter__(self):
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error):
        for context in reversed(self._contexts):
            context.__exit__(*error)


HOST = Device()
HOST_TENSORS = HostTensors()


def device_of(**arguments: Any) -> Device:
    """Where the named arguments live; those that are None do not count.

    The first one also decides whether `Device.export` gives torch tensors or CuPy arrays.

    Raises
    ------
    TypeError
        If they live in different places; the message names two of them.
    """
    found: dict[str, Device] = {n: _device(a) for n, a in arguments.items() if a is not None}
    if not found:
        return HOST
    (first, device), *others = found.items()
    for name, other in others:
        if _place(other) != _place(device):
            raise TypeError(
                f"{first} is on {device} and {name} on {other}: move one of them, arrays that work together live in "
                "one place"
            )
    return device


def namespace(array: Any) -> Any:
    """The array library that an array belongs to: NumPy or CuPy."""
    return _device(array).xp


def to_host(value: Any) -> Any:
    """A value that may live on a device as a NumPy array; anything on the host is returned unchanged."""
    device = _device(value)
    if not device.is_gpu:
        return device.asarray(value)
    with device.activated():
        return device.xp.asnumpy(device.asarray(value))


def attribute_on(device: Device, owner: Any, name: str) -> Any:
    """An array attribute of an object that never changes, on a device. It is copied there once for each owner."""
    if not device.is_gpu:
        return getattr(owner, name)
    copies = _COPIES.setdefault(owner, {})
    key = _place(device), name
    if key not in copies:
        copies[key] = device.upload(getattr(owner, name))
    return copies[key]


_COPIES: WeakKeyDictionary[Any, dict] = WeakKeyDictionary()


def _device(value) -> Device:
    kind = library(value)
    if kind == "cupy":
        return _cuda_device(value.device.id, False)
    if kind == "torch" and value.is_cuda:
        return _cuda_device(value.device.index, True)
    if kind == "torch" and value.device.type == "cpu":
        return HOST_TENSORS
    if kind not in ("torch", "numpy", "builtins") and hasattr(value, "__cuda_array_interface__"):
        import cupy

        return _cuda_device(cupy.asarray(value).device.id, False)
    return HOST


@cache
def _cuda_device(index, tensors):
    return CudaDevice(index, tensors)


@cache
def _kernels(device):
    try:
        from .. import _cuda
    except ImportError as error:
        raise RuntimeError(
            f"arrays on {device} need elastofast._cuda, which this installation does not have ({error}). Install "
            "again with nvcc on PATH and ELASTOFAST_CUDA=1, or move the arrays to host memory"
        ) from None
    if int(device.xp.__version__.partition(".")[0]) < MIN_CUPY:
        raise RuntimeError(f"elastofast needs CuPy {MIN_CUPY} or later, this is {device.xp.__version__}")
    return _cuda


@lru_cache(maxsize=64)  # asked for at every launch
def _queue(device, stream):
    return device.kernels.Queue(device.index, stream)


def _without_graph(tensor):
    """A tensor without its history, which is refused where it would be lost unnoticed."""
    import torch

    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            "a tensor requires grad, and this function is not differentiable: use elastofast.interop.torch, pass "
            "tensor.detach(), or work under torch.no_grad()"
        )
    return tensor.detach()


def _place(device):
    return getattr(device, "index", None)


def library(value) -> str:
    """Name of the package that a value's type belongs to."""
    return type(value).__module__.partition(".")[0]
