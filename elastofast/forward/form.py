"""The trilinear form a(x; u, v) = sum_n x_n v^T Psi_n u and its partial contractions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..backend.device import HOST, Device, device_of, namespace
from ..backend.operators import field_operator
from ..errors import ModulusError, refuse_masked
from ..geometry import Grid, Mesh
from ..laws import Law
from .protocol import FormBackend, Solver

__all__ = ["ElasticForm"]


class ElasticForm:
    """Elastic energy form of one body: linear in the modulus x and in both displacements u and v.

    The modulus is nodal and interpolated inside each cell: bilinear or trilinear on the cells of a `Grid` (2 Gauss
    points along each axis; in plane strain and in three dimensions the volumetric term acts on the mean dilatation of
    the cell), the mean of its nodes on a simplex of a `Mesh`.

    Parameters
    ----------
    geometry : Grid or Mesh
        N nodes in d dimensions.
    law : PlaneStress, PlaneStrain or Solid
        Material law of the same dimension.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, or the law of another dimension.

    Notes
    -----
    Shapes: x is ``(..., *geometry.node_shape)`` or ``(..., N)``, u is ``(..., d, *geometry.node_shape)`` or
    ``(..., d, N)``; leading axes are a batch and broadcast. The result has the layout of the displacement
    argument. float64 and float32 are computed in their own precision; other real dtypes become float64.
    CuPy arrays and CUDA torch tensors are worked on where they are, on the current stream, and give the same
    kind back (grids of two axes only); their values are not looked at, so NaN is not refused there.

    Examples
    --------
    >>> import numpy as np, elastofast as ef
    >>> form = ef.ElasticForm(ef.Grid((9, 9), (1e-3, 1e-3)), ef.PlaneStress(0.495))
    >>> x, u = np.full((9, 9), 1e4), np.random.default_rng(0).normal(size=(2, 9, 9))
    >>> bool(np.allclose(form.stiffness(x) @ u.ravel(), form.force(x, u).ravel()))
    True
    """

    def __init__(self, geometry: Grid | Mesh, law: Law) -> None:
        check_body(geometry, law)
        self.geometry = geometry
        self.law = law
        self.backend: FormBackend = self._made(HOST)
        self._devices: dict[Device, FormBackend] = {}

    def __reduce__(self):
        return ElasticForm, (self.geometry, self.law)

    def __repr__(self):
        return f"ElasticForm({self.geometry!r}, {self.law!r})"

    @property
    def node_shape(self) -> tuple[int, ...]:
        """Shape of a node field."""
        return self.geometry.node_shape

    @property
    def dof_shape(self) -> tuple[int, ...]:
        """Shape of a dof field, ``(d, *node_shape)``."""
        return (self.geometry.dim, *self.geometry.node_shape)

    def force(self, x: Any, u: Any, out: Any = None) -> Any:
        """K(x) u, which is also D(u) x: the nodal forces of displacement u at modulus x.

        Parameters
        ----------
        x : array_like, shape (..., *node_shape) or (..., N)
            Modulus in pascals; any sign, since the form is linear in it.
        u : array_like, shape (..., d, *node_shape) or (..., d, N)
            Displacement in metres.
        out : array, shape and dtype of the result, C-contiguous, optional
            Where to put the result; saves the time to allocate it. Must not overlap x or u.

        Returns
        -------
        array, shape (..., d, *node_shape) or (..., d, N)
            Newtons (2-D: per metre of thickness).

        Raises
        ------
        TypeError, ValueError
            If shapes, dtypes or values do not fit.
        """
        device = device_of(x=x, u=u, out=out)
        with device.activated():
            x, xb, _ = self._field(device.asarray(x), "x", 0)
            u, ub, flat = self._field(device.asarray(u), "u", 1)
            _same_dtype(x=x, u=u)
            batch = _broadcast(xb, ub, "x", "u")
            xp = device.xp
            if xb != batch and prod(xb) != 1:
                x = xp.ascontiguousarray(xp.broadcast_to(x.reshape(*xb, -1), (*batch, x.shape[-1])))
            u = self._expand(u, ub, batch)
            x = x.reshape(-1, x.shape[-1])
            if len(x) not in (1, len(u)) or (len(x) == 1 and len(u) > 1 and isinstance(self.geometry, Mesh)):
                x = xp.ascontiguousarray(xp.broadcast_to(x, (len(u), x.shape[-1])))
            shape = (*batch, self.geometry.dim, *self._tail(flat))
            f, finite = self._on(device).force(x, u, _output(device.asarray(out), shape, u))
            if not finite:
                _refuse_not_finite(x=x, u=u)
            return device.export(f.reshape(shape)) if out is None else out

    def sensitivity(self, u: Any, v: Any, out: Any = None) -> Any:
        """D(u)^T v: the derivative of v^T K(x) u by the modulus of each node.

        Parameters
        ----------
        u, v : array_like, shape (..., d, *node_shape) or (..., d, N)
            Displacements in metres.
        out : array, shape and dtype of the result, C-contiguous, optional
            Where to put the result. Must not overlap u or v.

        Returns
        -------
        array, shape (..., *node_shape) or (..., N)
            Entry n is v^T Psi_n u, joules per pascal (2-D: per metre of thickness).

        Raises
        ------
        TypeError, ValueError
            If shapes, dtypes or values do not fit.
        """
        device = device_of(u=u, v=v, out=out)
        with device.activated():
            u, ub, flat = self._field(device.asarray(u), "u", 1)
            v, vb, _ = self._field(device.asarray(v), "v", 1)
            _same_dtype(u=u, v=v)
            batch = _broadcast(ub, vb, "u", "v")
            u, v = self._expand(u, ub, batch), self._expand(v, vb, batch)
            shape = (*batch, *self._tail(flat))
            g, finite = self._on(device).sensitivity(u, v, _output(device.asarray(out), shape, u, drop_axis=True))
            if not finite:
                _refuse_not_finite(u=u, v=v)
            return device.export(g.reshape(shape)) if out is None else out

    def stiffness(self, x: Any, out: Any = None) -> Any:
        """K(x) as a sparse matrix.

        Parameters
        ----------
        x : array_like, shape node_shape or (N,)
            Modulus in pascals.
        out : scipy.sparse.csr_array, optional
            An earlier result of this method, whose values are overwritten: no memory is allocated.

        Returns
        -------
        scipy.sparse.csr_array (on a GPU cupyx.scipy.sparse.csr_matrix), shape (d N, d N)
            Dof number = component * N + node. All results share one (read-only) sparsity pattern.

        Raises
        ------
        TypeError, ValueError
            If shape, dtype or values do not fit.
        """
        device = device_of(x=x)
        with device.activated():
            x, batch, _ = self._field(device.asarray(x), "x", 0)
            self._single(batch, "x", self.node_shape)
            if not device.is_gpu and not np.isfinite(x.sum()):
                _refuse_not_finite(x=x)
            return self._on(device).stiffness(x.reshape(-1), out)

    def contraction(self, u: Any, out: Any = None) -> Any:
        """D(u) as a sparse matrix: D(u) x = K(x) u.

        Parameters
        ----------
        u : array_like, shape (d, *node_shape) or (d, N)
            Displacement in metres.
        out : scipy.sparse.csr_array, optional
            An earlier result of this method, whose values are overwritten.

        Returns
        -------
        scipy.sparse.csr_array (on a GPU cupyx.scipy.sparse.csr_matrix), shape (d N, N)
            Row number = component * N + node. All results share one (read-only) sparsity pattern.

        Raises
        ------
        TypeError, ValueError
            If shape, dtype or values do not fit.
        """
        device = device_of(u=u)
        with device.activated():
            u, batch, _ = self._field(device.asarray(u), "u", 1)
            self._single(batch, "u", self.dof_shape)
            if not device.is_gpu and not np.isfinite(u.sum()):
                _refuse_not_finite(u=u)
            return self._on(device).contraction(u.reshape(self.geometry.dim, -1), out)

    def stiffness_operator(self, x: Any, active: Any = None) -> Any:
        """K(x) as an operator that multiplies without a matrix.

        Parameters
        ----------
        x : array_like, shape node_shape or (N,)
            Modulus in pascals.
        active : array of bool, shape (d, *node_shape), optional
            The rows and columns to keep, such as ``load.loaded``: all others are left out, so that the operator is
            positive definite where the rest of the body's dofs are supports that hold it.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator (on a GPU that of cupyx), shape (d N, d N), or (active, active)
            Symmetric; of the dtype of x.

        Raises
        ------
        TypeError, ValueError
            If shape, dtype or values do not fit.

        Examples
        --------
        >>> from scipy.sparse.linalg import cg
        >>> import numpy as np, elastofast as ef
        >>> grid = ef.Grid((9, 9), (1e-3, 1e-3))
        >>> form, load = ef.ElasticForm(grid, ef.PlaneStress(0.495)), ef.compression(grid, pressure=100.0)
        >>> x = np.full((9, 9), 1e4)
        >>> u, info = cg(form.stiffness_operator(x, load.loaded), load.force[load.loaded], rtol=1e-10)
        >>> bool(np.allclose(u, ef.solve_forward(form, x, load)[load.loaded]))
        True
        """
        device, recipe = device_of(x=x), (ElasticForm.stiffness_operator, (self, x, active))
        x, batch, _ = self._field(device.asarray(x), "x", 0)
        self._single(batch, "x", self.node_shape)
        x, dofs = x.reshape(-1), (self.geometry.dim, self.geometry.n_nodes)
        if active is None:
            return field_operator(device.native, dofs, dofs, lambda u: self.force(x, u), dtype=x.dtype, recipe=recipe)
        kept = np.asarray(active)
        if kept.dtype != bool or kept.size != dofs[0] * dofs[1]:
            raise ValueError(f"active must be a mask of shape {self.dof_shape}, got {kept.dtype} {kept.shape}")
        places = device.native.upload(np.flatnonzero(kept))

        def product(values):
            u = device.xp.zeros((len(values), *dofs), x.dtype)
            u.reshape(len(values), -1)[:, places] = values
            return self.force(x, u).reshape(len(values), -1)[:, places]

        return field_operator(device.native, places.shape, places.shape, product, dtype=x.dtype, recipe=recipe)

    def contraction_operator(self, u: Any) -> Any:
        """D(u) as an operator that multiplies without a matrix: D(u) x = K(x) u, D(u)^T v = `sensitivity` (u, v).

        Parameters
        ----------
        u : array_like, shape (d, *node_shape) or (d, N)
            Displacement in metres.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator (on a GPU that of cupyx), shape (d N, N)
            Of the dtype of u.

        Raises
        ------
        TypeError, ValueError
            If shape, dtype or values do not fit.
        """
        device, recipe = device_of(u=u), (ElasticForm.contraction_operator, (self, u))
        u, batch, _ = self._field(device.asarray(u), "u", 1)
        self._single(batch, "u", self.dof_shape)
        u = u.reshape(self.geometry.dim, -1)

        def forces(x):
            return self.force(x, u)

        def sensitivities(v):
            return self.sensitivity(u, v)

        return field_operator(device.native, u.shape, u.shape[1:], forces, sensitivities, u.dtype, recipe=recipe)

    def operators(self, u: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """The linear operators D(u) and D(u)^T as two functions, of node fields (..., N) and of dof fields (..., d, N).

        For iterative methods that apply them many times: nothing is checked.

        Parameters
        ----------
        u : array of float64, shape (..., d, N), C-contiguous
            Displacement; an array of the library's own.
        """
        backend = self._on(device_of(u=u))
        flat, nodes = u.reshape(-1, *u.shape[-2:]), (*u.shape[:-2], u.shape[-1])

        def product(x):
            return backend.force(x.reshape(-1, u.shape[-1]), flat)[0].reshape(u.shape)

        def transposed(v):
            return backend.sensitivity(flat, v.reshape(flat.shape))[0].reshape(nodes)

        return product, transposed

    def solver(self, x: Any, active: np.ndarray, shift: Any = None) -> Solver:
        """Solver for K(x) + diag(shift) restricted to the active dofs.

        For use inside a computation: on a device it takes and gives CuPy's arrays and works on CuPy's current stream.

        Parameters
        ----------
        x : array of float64, N values
            Modulus in pascals, positive; on a device also a batch (B, N).
        active : numpy.ndarray of bool, d N values
            Dofs to solve for.
        shift : array of float64, d N values, optional
            Diagonal to add, not negative; with a batch of moduli also one for each.

        Returns
        -------
        Solver
            For fields of shape (d, N), or (B, d, N) for a batch. Its ``update`` does not check the modulus.

        Raises
        ------
        ModulusError (a ValueError)
            If x is not positive and finite; not looked at on a device.

        Examples
        --------
        One solver for many moduli: ``update`` takes the next one and keeps what does not depend on it.

        >>> import numpy as np, elastofast as ef
        >>> grid = ef.Grid((33, 33), (1e-3, 1e-3))
        >>> form, load = ef.ElasticForm(grid, ef.PlaneStress(0.495)), ef.compression(grid, pressure=100.0)
        >>> x, force = np.full(grid.n_nodes, 1e4), load.force.reshape(2, -1)
        >>> solver = form.solver(x, load.loaded)
        >>> for modulus in (1e4, 2e4):
        ...     solver.update(np.full(grid.n_nodes, modulus))
        ...     print(f"{solver.solve(force).value[0].max():.3g} m")
        0.00032 m
        0.00016 m
        """
        device = device_of(x=x, shift=shift)
        if not device.is_gpu:  # where it would have to wait for the device
            check_modulus(x, self)
        return self._on(device).solver(x, active, shift)

    def _on(self, device: Device) -> FormBackend:
        """The backend for arrays of a device."""
        device = device.native
        if not device.is_gpu:
            return self.backend
        if device not in self._devices:
            if not isinstance(self.geometry, Grid) or self.geometry.dim != 2:
                raise TypeError(
                    f"arrays on {device} need a Grid of two axes: a Mesh and a Grid of three axes are computed in host "
                    "memory, move the arrays there"
                )
            self._devices[device] = self._made(device)
        return self._devices[device]

    def _made(self, device):
        """A new backend for arrays of a device."""
        if self.law.is_map:
            from .mapped import MappedBackend

            make = partial(_constant_backend, self.geometry, device=device)
            return MappedBackend(self.geometry, self.law, make, device)
        if device.is_gpu:  # with the host's numbers and patterns
            return _constant_backend(self.geometry, self.law, device, self.backend)
        return _constant_backend(self.geometry, self.law)

    def _field(self, value, name, ranks):
        """Contiguous float array (batch, [d,] N), its batch shape, and whether nodes came as one axis."""
        array, xp = as_float(value, name), namespace(value)
        nodes, n = self.node_shape, self.geometry.n_nodes
        lead = (self.geometry.dim,) * ranks
        for tail, flat in ((lead + nodes, False), ((*lead, n), True)):
            if array.ndim >= len(tail) and array.shape[array.ndim - len(tail) :] == tail:
                batch = array.shape[: array.ndim - len(tail)]
                return xp.ascontiguousarray(array).reshape(*batch, *lead, n), batch, flat
        wanted = " or ".join(dict.fromkeys(str(("...", *lead, *t)).replace("'", "") for t in (nodes, (n,))))
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")

    def _expand(self, field, batch, wanted):
        """Field (*batch, d, N) broadcast to the wanted batch axes, as (B, d, N) with B the product of these."""
        tail = field.shape[len(batch) :]
        if batch != wanted:
            xp = namespace(field)
            field = xp.ascontiguousarray(xp.broadcast_to(field.reshape(*batch, *tail), (*wanted, *tail)))
        return field.reshape(-1, *tail)

    def _tail(self, flat):
        return (self.geometry.n_nodes,) if flat else self.node_shape

    @staticmethod
    def _single(batch, name, shape):
        if prod(batch) != 1:
            raise ValueError(f"{name} must be one field of shape {shape}, got a batch of shape {batch}")


def _constant_backend(geometry, law, device=HOST, host=None):
    """The backend of a law with constant Lame numbers, which on a device is a shell over that of the host."""
    if isinstance(geometry, Mesh):
        from .mesh import MeshBackend

        return MeshBackend(geometry, law)
    if host is None:
        from .grid import GridBackend

        host = GridBackend(geometry, law)
    if not device.is_gpu:
        return host
    from .grid_cuda import DeviceBackend

    return DeviceBackend(host, device)


def check_body(geometry, law):
    """A geometry and a law of the same dimension."""
    if not isinstance(geometry, Grid | Mesh):
        raise TypeError(f"geometry must be a Grid or a Mesh, got {type(geometry).__name__}")
    if not isinstance(law, Law):
        raise TypeError(f"law must be PlaneStress, PlaneStrain or Solid, got {type(law).__name__}")
    if law.dim != geometry.dim:
        raise ValueError(f"law {type(law).__name__} is {law.dim}-D, but the geometry is {geometry.dim}-D")
    shape = np.shape(law.poisson)
    if shape and shape not in (geometry.node_shape, (geometry.n_nodes,)):
        raise ValueError(
            f"law has a map of the Poisson ratio of shape {shape}, but it needs one value for each node, shape "
            f"{geometry.node_shape}"
        )


def as_float(value, name) -> np.ndarray:
    """Array of float64 or float32, on a device as it is, else in NumPy; other real numbers become float64."""
    refuse_masked(value, name)
    try:
        array = namespace(value).asarray(value)
    except Exception as error:  # arrays of other libraries' devices refuse to be copied silently
        raise TypeError(f"{name} must be an array in host memory, got {type(value).__name__}: {error}") from error
    if array.dtype in (np.float64, np.float32):
        return array
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold real numbers (float64 or float32), got dtype {array.dtype}")
    return array.astype(np.float64)


def _same_dtype(**arrays):
    (a, first), (b, second) = arrays.items()
    if first.dtype != second.dtype:
        raise TypeError(f"{a} and {b} must have one dtype, got {first.dtype} and {second.dtype}")


def _broadcast(a, b, name_a, name_b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(f"batch axes of {name_a} {a} and {name_b} {b} do not broadcast") from None


def _output(out, shape, like, drop_axis=False):
    """The caller's output array in the kernels' own layout, (B, d, N) or (B, N)."""
    if out is None:
        return None
    kind = namespace(like).ndarray
    if not isinstance(out, kind) or out.dtype != like.dtype or out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be a C-contiguous {like.dtype} array of shape {shape}, got "
            + (f"{out.dtype} {out.shape}" if isinstance(out, kind) else type(out).__name__)
        )
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out is read-only")
    return out.reshape(like.shape[:1] + like.shape[2:] if drop_axis else like.shape)


def _refuse_not_finite(**arguments):
    """Raise for the argument that holds NaN or infinity; a mere overflow of the result is the caller's to see."""
    for name, array in arguments.items():
        bad = ~np.isfinite(array)
        if bad.any():
            raise ValueError(f"{name} must be finite, {int(bad.sum())} of its {bad.size} values are NaN or infinite")


def check_modulus(x, form, name="x") -> tuple[np.ndarray, tuple[int, ...]]:
    """Positive finite float64 modulus as (*batch, N), with the batch shape."""
    array, batch, _ = form._field(x, name, 0)
    if not array.size:
        raise ValueError(f"{name} must hold at least one modulus, its shape is {array.shape}")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = ~np.isfinite(array)
        raise ModulusError(f"{name} must be finite, {int(bad.sum())} of its {bad.size} values are NaN or infinite")
    if low <= 0:
        raise ModulusError(f"{name} must be positive (pascals) at every node, its smallest value is {low:g}")
    return array.astype(np.float64, copy=False), batch
