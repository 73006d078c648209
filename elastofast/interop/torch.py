"""The forward model, the data term and the data step of the splitting as differentiable functions of torch.

Tensors stay where they are: on the processor or on a GPU. Everything is computed in float64 but for `force` and
`sensitivity`, which keep float32, and is given back in the dtype of the arguments. All functions take leading batch
axes, work under ``torch.func`` (grad, vjp, vmap), and under ``torch.autograd``.

How derivatives are found: `force`, `sensitivity` and the solve with K are closed under differentiation, because each
one's derivatives are the other ones (K(x) u is linear in x and in u, and the derivative of a solve is a solve with the
same symmetric matrix). They can therefore be differentiated any number of times. Of the data term J, the envelope
theorem gives all first derivatives without a further solve, with the multiplier z and the denoised displacement u_hat:
dJ/dx = -D(u_hat)^T z, dJ/df = z, dJ/du_m = -K(x) z, dJ/dnu = -z^T (dK/dnu) u_hat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..backend.device import device_of, to_host
from ..backend.processors import side_by_side, threads
from ..boundary import Boundary
from ..forward.form import ElasticForm, check_modulus
from ..forward.solve import check_problem, check_rtol, for_members, take_moduli
from ..inversion.data_step import minimise_data_step, pull_back_data_step
from ..joint import JointMeasurement
from ..laws import LameNumbers, Law
from ..measurement import Measurement
from ..misfit.fidelity import Fidelity

__all__ = ["DataStep", "as_tensor", "force", "misfit", "sensitivity", "solve_forward"]

CACHED_FORMS = 16  # forms at other Poisson ratios that are kept: the last ones of a batch of moderate size

LARGEST_LOGARITHM = 700.0  # exp of more is no number of double precision


def as_tensor(array: Any, like: Tensor | None = None) -> Tensor:
    """An array of the library as a tensor of its own memory; read-only masks and fields can be given.

    Parameters
    ----------
    array : array_like
    like : Tensor, optional
        Numbers get its dtype, and all its device; masks stay masks.
    """
    tensor = torch.from_numpy(np.array(array))
    if like is None:
        return tensor
    return tensor.to(like.device) if tensor.dtype == torch.bool else tensor.to(like)


def force(form: ElasticForm, x: Tensor, u: Tensor, poisson: Tensor | None = None) -> Tensor:
    """K(x) u, differentiable any number of times.

    Parameters
    ----------
    form : ElasticForm
    x : Tensor, shape (..., *node_shape) or (..., N)
        Modulus in pascals.
    u : Tensor, shape (..., d, *node_shape) or (..., d, N)
        Displacement in metres. Batch axes of the arguments broadcast.
    poisson : Tensor, shape (...) , optional
        Poisson ratio; by default that of the form's law.

    Returns
    -------
    Tensor, shape (..., d, *node_shape) or (..., d, N)
        Newtons (2-D: per metre of thickness).

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> f = force(form, x.requires_grad_(), u)  # doctest: +SKIP
    """
    fields = _Fields(form, x=x, u=u, poisson=poisson)
    return fields.dofs(_force(form, fields.flat("x"), fields.flat("u"), *fields.lame), "u")


def sensitivity(form: ElasticForm, u: Tensor, v: Tensor, poisson: Tensor | None = None) -> Tensor:
    """D(u)^T v, differentiable any number of times; arguments as of `force`.

    Returns
    -------
    Tensor, shape (..., *node_shape) or (..., N)
    """
    fields = _Fields(form, u=u, v=v, poisson=poisson)
    return fields.nodes(_sensitivity(form, fields.flat("u"), fields.flat("v"), *fields.lame), "u")


def solve_forward(
    form: ElasticForm,
    x: Tensor,
    load: Boundary,
    *,
    force: Tensor | None = None,
    displacement: Tensor | None = None,
    poisson: Tensor | None = None,
    rtol: float = 1e-8,
) -> Tensor:
    """Displacement u with K(x) u = f on the loaded dofs and u as given on the fixed ones.

    As `elastofast.solve_forward`. Differentiable any number of times; each derivative costs one more solve.

    Parameters
    ----------
    form : ElasticForm
    x : Tensor, shape (..., *node_shape) or (..., N)
        Modulus in pascals, positive.
    load : Boundary
        Fixed and loaded dofs, without open ones.
    force : Tensor, shape (..., d, *node_shape) or (..., d, N), optional
        Forces on the loaded dofs in place of those of the load; other entries are ignored.
    displacement : Tensor, shape (..., d, *node_shape) or (..., d, N), optional
        Displacements of the fixed dofs in place of those of the load; other entries are ignored.
    poisson : Tensor, shape (...), optional
        Poisson ratio; by default that of the form's law.
    rtol : float
        Relative tolerance of the solves. Derivatives are as accurate.

    Returns
    -------
    Tensor, shape (..., d, *node_shape) or (..., d, N)

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    SolveError (a RuntimeError)
        If a solve does not converge.
    """
    check_problem(form, load, rtol)
    fields = _Fields(form, x=x, force=force, displacement=displacement, poisson=poisson)
    loaded = as_tensor(load.loaded, x).reshape(form.geometry.dim, -1)
    f, g = (
        as_tensor(getattr(load, name), fields.tensors["x"]).reshape(1, *loaded.shape)
        if given is None
        else fields.flat(name)
        for name, given in (("force", force), ("displacement", displacement))
    )
    zero = torch.zeros((), dtype=f.dtype, device=f.device)
    moduli = fields.flat("x")
    moved = displacement is not None or load.displacement.any()
    if moved:
        g = torch.where(loaded, zero, g)
        f = f - _force(form, moduli, g, *fields.lame)
    u = _solve(form, load.loaded, rtol, moduli, fields.poisson, *fields.lame, torch.where(loaded, f, zero))
    return fields.dofs(g + u if moved else u, "x")


def misfit(
    measurement: Measurement | Fidelity | Sequence[Measurement | Fidelity],
    x: Tensor,
    *,
    displacement: Tensor | None = None,
    force: Tensor | None = None,
    poisson: Tensor | None = None,
    rtol: float = 1e-8,
) -> Tensor:
    """The data term J(x) = 1/2 r^T Gamma^-1 r of `elastofast.Fidelity`; differentiable once.

    Parameters
    ----------
    measurement : Measurement or Fidelity, or a sequence of them
        What was measured. A sequence has one for each modulus, along the first axis of x. A `Fidelity` is set up
        already, so that repeated calls are quicker, and has its own tolerance and ``on_failure``; its gradient is the
        exact one.
    x : Tensor, shape (..., *node_shape) or (..., N)
        Modulus in pascals, positive.
    displacement : Tensor, shape (..., d, *node_shape) or (..., d, N), optional
        The measured displacement in metres, in place of the measurement's own.
    force : Tensor, shape (..., d, *node_shape) or (..., d, N), optional
        The forces on loaded dofs in newtons, in place of the load's; other entries are ignored.
    poisson : Tensor, shape (...), optional
        Poisson ratio, in place of the law's.
    rtol : float
        Relative tolerance of the solves.

    Returns
    -------
    Tensor, shape (...)

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    SolveError (a RuntimeError)
        If a solve does not converge.

    Notes
    -----
    Displacements of open dofs that nobody measured are expected to move as in a homogeneous body (`Measurement`). These
    expected values count as constants in the derivative by the measured displacement.

    Examples
    --------
    >>> loss = misfit(m, x.requires_grad_())  # doctest: +SKIP
    >>> loss.backward()  # doctest: +SKIP
    """
    check_rtol(rtol)
    single = isinstance(measurement, Measurement | Fidelity)
    members = _members("measurement", measurement, Measurement | Fidelity)
    form = _form_of(members)
    if any(isinstance(one, Fidelity) and one.kind != "exact" for one in members):
        raise ValueError("measurement is a Fidelity whose gradient is 'frozen', which is no derivative: use 'exact'")
    fields = _Fields(form, x=x, displacement=displacement, force=force, poisson=poisson)
    count = None if single else len(members)
    if count is not None and (not fields.batch or fields.batch[0] != count):
        raise ValueError(f"x must have {count} moduli along its first axis, one for each measurement, got {x.shape}")
    data = [fields.flat(name) if given is not None else None for name, given in fields.given.items() if name != "x"]
    moduli = fields.flat("x").expand(fields.count, -1)  # the repeats of a shared modulus are different data terms
    if not single:
        members = [one for one in members for _ in range(fields.count // len(members))]
    found = _Misfit.apply(form, members, rtol, moduli, fields.poisson, *fields.lame, *data)
    return found[0].to(fields.tensors["x"].dtype).reshape(fields.batch)


class DataStep(nn.Module):
    """The data step of half-quadratic splitting: the map nearest to a target that explains the measurement.

    For a target v of the logarithm of the modulus it finds the minimiser z of J(exp z) + weight / 2 |z - v|^2. Its
    derivatives are found by implicit differentiation: of the condition of a minimum, by one linear system with its
    Hessian, whatever the iteration that led there. A network that names targets and this layer, in turns, are an
    unrolled splitting, or the map of a deep-equilibrium network.

    Parameters
    ----------
    measurements : Measurement or sequence of Measurement
        On one geometry. A sequence has one for each map of a batch.
    weight : float
        Weight of the distance to the target, where a call does not give one.
    tolerance : float
        The iteration ends when the gradient has fallen to this fraction of weight (z - v), which the data term's has to
        balance. Errors of the derivatives are of this order.
    max_iterations : int
        Largest number of Gauss-Newton steps.
    rtol : float
        Relative tolerance of the linear solves.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> layer = DataStep([m1, m2], weight=10.0)  # doctest: +SKIP
    >>> z = layer(network(z))  # (2, 64, 64)  # doctest: +SKIP
    """

    def __init__(
        self,
        measurements: Measurement | Sequence[Measurement],
        weight: float = 1.0,
        tolerance: float = 1e-2,
        max_iterations: int = 50,
        rtol: float = 1e-6,
    ) -> None:
        super().__init__()
        members = _members("measurements", measurements, Measurement)
        self.form = _form_of(members)
        for name, value in (("weight", weight), ("tolerance", tolerance)):
            if not (isinstance(value, int | float | np.number) and 0 < value < np.inf):
                raise ValueError(f"{name} must be a positive, finite number, got {value!r}")
        if not (isinstance(max_iterations, int | np.integer) and max_iterations > 0):
            raise ValueError(f"max_iterations must be a positive whole number, got {max_iterations!r}")
        check_rtol(rtol)
        self.measurements, self.tolerance = members, float(tolerance)
        self.max_iterations, self.rtol = int(max_iterations), float(rtol)
        self.weight = float(weight)

    def extra_repr(self) -> str:
        """What torch prints of the layer."""
        return f"{len(self.measurements)} measurements on {self.form.geometry!r}, weight={self.weight:g}"

    def forward(
        self,
        target: Tensor,
        weight: Tensor | float | None = None,
        displacement: Tensor | None = None,
        force: Tensor | None = None,
    ) -> Tensor:
        """The nearest log modulus.

        Parameters
        ----------
        target : Tensor, shape (..., *node_shape), such as (B, 1, H, W), or (..., N)
            The target v of log x, x in pascals.
        weight : Tensor of shape () or (...), or float, optional
        displacement, force : Tensor, shape (..., d, *node_shape), optional
            Data in place of those of the measurements.

        Returns
        -------
        Tensor, shape of the target

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        SolveError (a RuntimeError)
            If a solve fails whatever the step.

        Warns
        -----
        UserWarning
            If the tolerance is not reached in ``max_iterations``, as happens for small weights and far targets.
        """
        fields = _Fields(self.form, target=target, displacement=displacement, force=force)
        if fields.count % len(self.measurements) or (
            len(self.measurements) > 1 and fields.batch[0] != len(self.measurements)
        ):
            raise ValueError(
                f"target must have {len(self.measurements)} maps along its first axis, one for each measurement, "
                f"got shape {tuple(target.shape)}"
            )
        v = fields.flat("target")
        rho = _number("weight", self.weight if weight is None else weight, v)
        if rho.ndim > len(fields.batch):
            raise ValueError(f"weight must be one number, or one for each map, got shape {tuple(rho.shape)}")
        rho = rho.expand(fields.batch).reshape(-1) if rho.ndim else rho.reshape(1)
        data = [fields.flat(name) if name in fields.tensors else None for name in ("displacement", "force")]
        members = [one for one in self.measurements for _ in range(fields.count // len(self.measurements))]
        limits = self.tolerance, self.max_iterations
        z = _Nearest.apply(members, self.rtol, limits, v.expand(fields.count, -1), rho, *data)
        return fields.nodes(z, "target")


class _Fields:
    """The tensors of one call: checked, of one dtype, with their batch axes broadcast and flattened to one.

    Attributes
    ----------
    batch : tuple of int
        Broadcast batch shape of all arguments.
    count : int
        The product of these.
    poisson : Tensor of shape (1,) or (count,), or None
    lame : pair of Tensors of the same shape, or (None, None)
        The two Lame numbers per unit modulus as functions of the Poisson ratio.
    """

    def __init__(self, form: ElasticForm, poisson: Tensor | None = None, **given: Tensor | None) -> None:
        self.form, self.given = form, given
        if not isinstance(form, ElasticForm):
            raise TypeError(f"form must be an ElasticForm, got {type(form).__name__}")
        tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
            if tensor.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{name} must be of dtype float32 or float64, got {tensor.dtype}")
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
        self.tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        found = {name: self._split(name, tensor) for name, tensor in self.tensors.items()}
        shapes = [batch for batch, _ in found.values()]
        if poisson is not None:
            poisson = _number("poisson", poisson, next(iter(self.tensors.values())))
            shapes.append(tuple(poisson.shape))
        try:
            self.batch = tuple(np.broadcast_shapes(*shapes))
        except ValueError:
            names = ", ".join([*found, "poisson"][: len(shapes)])
            raise ValueError(f"batch axes of {names} do not broadcast: {', '.join(map(str, shapes))}") from None
        self.count = int(np.prod(self.batch, dtype=int))
        self._tails = {name: tail for name, (_, tail) in found.items()}
        self._batches = {name: batch for name, (batch, _) in found.items()}
        self.poisson: Tensor | None = None
        self.lame: tuple[Tensor | None, Tensor | None] = (None, None)
        if poisson is not None:
            _check_poisson(form.law, poisson)
            own = poisson.expand(self.batch).reshape(-1) if np.prod(poisson.shape) != 1 else poisson.reshape(1)
            self.poisson, self.lame = own.detach(), _lame(form.law, own)

    def flat(self, name: str) -> Tensor:
        """An argument as (count, N) or (count, d, N); of length one where the whole batch shares it."""
        tensor, batch = self.tensors[name], self._batches[name]
        own = self._own(name)
        if np.prod(batch, dtype=int) == 1:
            return tensor.reshape(1, *own)
        return tensor.reshape(*batch, *own).expand(*self.batch, *own).reshape(-1, *own)

    def nodes(self, field: Tensor, like: str) -> Tensor:
        """A node field (count, N) in the layout of an argument, with its dtype and the batch axes of all."""
        tail = self._tails[like][self._is_dof(like) :]
        return field.to(self.tensors[like].dtype).expand(self.count, -1).reshape(*self.batch, *tail)

    def dofs(self, field: Tensor, like: str) -> Tensor:
        """A dof field (count, d, N) likewise."""
        d, tail = self.form.geometry.dim, self._tails[like][self._is_dof(like) :]
        return field.to(self.tensors[like].dtype).expand(self.count, -1, -1).reshape(*self.batch, d, *tail)

    def _own(self, name):
        d, n = self.form.geometry.dim, self.form.geometry.n_nodes
        return (d, n) if self._is_dof(name) else (n,)

    @staticmethod
    def _is_dof(name):
        return name not in ("x", "target")

    def _split(self, name, tensor):
        """Batch axes, and the axes of one field."""
        lead, shape = (self.form.geometry.dim,) * self._is_dof(name), tuple(tensor.shape)
        for tail in ((*lead, *self.form.node_shape), (*lead, self.form.geometry.n_nodes)):
            if shape[len(shape) - len(tail) :] == tail and len(shape) >= len(tail):
                return shape[: len(shape) - len(tail)], tail
        raise ValueError(
            f"{name} must have shape (..., {', '.join(map(str, (*lead, *self.form.node_shape)))}), got {shape}"
        )


# ------------------------------------------------------------------------------------------------------ Poisson ratios


def _lame(law: Law, poisson: Tensor) -> tuple[Tensor, Tensor]:
    """The Lame numbers of a law as differentiable functions of its Poisson ratio: the law's own expressions."""
    own = object.__new__(type(law))
    object.__setattr__(own, "poisson", poisson)
    return own.lame_lambda, own.lame_mu  # type: ignore[return-value]


def _check_poisson(law, poisson):
    try:
        values = poisson.detach().flatten().tolist()
    except RuntimeError:  # inside vmap there are no single values
        return
    for value in set(values):
        replace(law, poisson=value)


@lru_cache(maxsize=CACHED_FORMS)
def _parts(form: ElasticForm) -> tuple[ElasticForm, ElasticForm]:
    """The form in two parts: what is multiplied by the first Lame number and what by the second."""
    laws = (LameNumbers(form.law, *numbers) for numbers in ((1.0, 0.0), (0.0, 1.0)))
    first, second = (ElasticForm(form.geometry, law) for law in laws)
    return first, second


@lru_cache(maxsize=CACHED_FORMS)
def _form_at(form: ElasticForm, poisson: float) -> ElasticForm:
    """The form at another Poisson ratio."""
    return ElasticForm(form.geometry, replace(form.law, poisson=poisson))


def _number(name, value, like):
    """A number or a tensor of numbers with the dtype and device of a tensor."""
    try:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or a tensor, got {value!r}") from None


def _members(name, given, kinds) -> list[Any]:
    """One measurement or a sequence of them, as a list."""
    members = list(given) if isinstance(given, Sequence) else [given]
    wrong = next((one for one in members if not isinstance(one, kinds)), None)
    if not members or wrong is not None:
        wanted = " or ".join(kind.__name__ for kind in getattr(kinds, "__args__", (kinds,)))
        got = "an empty sequence" if not members else type(wrong).__name__
        note = ": the misfit of several frames is the sum of theirs" if isinstance(wrong, JointMeasurement) else ""
        raise TypeError(f"{name} must be a {wanted}, or a sequence with one for each map, got {got}{note}")
    return members


def _form_of(members):
    measurements = [_measurement(one) for one in members]
    first = measurements[0]
    if any(m.geometry != first.geometry or m.law != first.law for m in measurements):
        raise ValueError("measurements must be on one geometry, with one law")
    return first.form


def _measurement(member):
    return member.measurement if isinstance(member, Fidelity) else member


# ------------------------------------------------------------------------------------------------------ the three maps


def _force(form, x, u, lam, mu):
    """K(x) u for x (count or 1, N) and u (count or 1, d, N)."""
    if lam is None:
        return _Force.apply(form, x, u)
    first, second = _parts(form)
    return lam[:, None, None] * _Force.apply(first, x, u) + mu[:, None, None] * _Force.apply(second, x, u)


def _sensitivity(form, u, v, lam, mu):
    if lam is None:
        return _Sensitivity.apply(form, u, v)
    first, second = _parts(form)
    return lam[:, None] * _Sensitivity.apply(first, u, v) + mu[:, None] * _Sensitivity.apply(second, u, v)


def _solve(form, active, rtol, x, poisson, lam, mu, b):
    return _Solve.apply(form, active, rtol, x, poisson, lam, mu, b)


def _like(gradient, tensor):
    """A gradient (count, ...) summed over the batch where the argument is shared by it."""
    return gradient.sum(dim=0, keepdim=True) if len(tensor) == 1 and len(gradient) > 1 else gradient


def _inner(a, b):
    return (a * b).sum(dim=(-2, -1))


def _over_batch(function, constants, info, in_dims, tensors):
    """`function` where torch.vmap has added an axis: it joins the first axis, which the function has anyway."""
    moved = [t if dim is None or t is None else t.movedim(dim, 0) for t, dim in zip(tensors, in_dims, strict=True)]
    inner = max(t.shape[0 if dim is None else 1] for t, dim in zip(moved, in_dims, strict=True) if t is not None)

    def joined(t, dim):
        if t is None or (dim is None and len(t) == 1):  # shared by all
            return t
        t = t if dim is not None else t[None]
        return t.expand(info.batch_size, inner, *t.shape[2:]).reshape(-1, *t.shape[2:])

    out = function.apply(*constants, *(joined(t, dim) for t, dim in zip(moved, in_dims, strict=True)))
    if isinstance(out, tuple):
        return tuple(t.reshape(info.batch_size, inner, *t.shape[1:]) for t in out), (0,) * len(out)
    return out.reshape(info.batch_size, inner, *out.shape[1:]), 0


class _Force(Function):
    """(x, u) -> K(x) u."""

    @staticmethod
    def forward(form, x, u):
        return form.force(x, u)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.form, x, u = inputs
        ctx.save_for_backward(x, u)
        ctx.save_for_forward(x, u)

    @staticmethod
    def backward(ctx, g):
        x, u = ctx.saved_tensors
        _, by_x, by_u = ctx.needs_input_grad
        return (
            None,
            _like(_Sensitivity.apply(ctx.form, u, g), x) if by_x else None,
            _like(_Force.apply(ctx.form, x, g), u) if by_u else None,
        )

    @staticmethod
    def jvp(ctx, _, dx, du):
        x, u = ctx.saved_tensors
        changes = [_Force.apply(ctx.form, *pair) for pair in ((dx, u), (x, du)) if None not in pair]
        return sum(changes[1:], changes[0])

    @staticmethod
    def vmap(info, in_dims, form, *tensors):
        return _over_batch(_Force, (form,), info, in_dims[1:], tensors)


class _Sensitivity(Function):
    """(u, v) -> D(u)^T v."""

    @staticmethod
    def forward(form, u, v):
        return form.sensitivity(u, v)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.form, u, v = inputs
        ctx.save_for_backward(u, v)
        ctx.save_for_forward(u, v)

    @staticmethod
    def backward(ctx, g):
        u, v = ctx.saved_tensors
        _, by_u, by_v = ctx.needs_input_grad
        return (
            None,
            _like(_Force.apply(ctx.form, g, v), u) if by_u else None,
            _like(_Force.apply(ctx.form, g, u), v) if by_v else None,
        )

    @staticmethod
    def jvp(ctx, _, du, dv):
        u, v = ctx.saved_tensors
        changes = [_Sensitivity.apply(ctx.form, *pair) for pair in ((du, v), (u, dv)) if None not in pair]
        return sum(changes[1:], changes[0])

    @staticmethod
    def vmap(info, in_dims, form, *tensors):
        return _over_batch(_Sensitivity, (form,), info, in_dims[1:], tensors)


class _Solve(Function):
    """(x, b) -> K(x)^-1 b on the active dofs; the Poisson ratio is where derivatives by the Lame numbers are taken."""

    @staticmethod
    def forward(form, active, rtol, x, poisson, lam, mu, b):
        device = device_of(x=x)
        with device.activated():
            moduli, _ = check_modulus(device.asarray(x), form)
            rhs = device.asarray(b).astype(np.float64, copy=False)
            forms = [form] if poisson is None else [_form_at(form, value) for value in poisson.tolist()]
            count = max(len(moduli), len(rhs), len(forms))
            out = device.xp.empty((count, *rhs.shape[1:]))
            key = None
            for k in range(count):
                own = k % len(forms), k % len(moduli)
                if own != key:  # members that share modulus and law share their solver
                    key, solver = own, forms[own[0]].solver(moduli[own[1]], active)
                out[k] = solver.solve(rhs[k % len(rhs)], rtol=rtol).value
            return device.export(out).to(b.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.form, ctx.active, ctx.rtol, *tensors = inputs
        saved = *tensors[:4], output, tensors[4]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx, g):
        x, poisson, lam, mu, w, b = ctx.saved_tensors
        *_, by_x, _, by_lam, by_mu, by_b = ctx.needs_input_grad
        z = _solve(ctx.form, ctx.active, ctx.rtol, x, poisson, lam, mu, g)
        gx = glam = gmu = None
        if by_x:
            gx = _like(-_sensitivity(ctx.form, w, z, lam, mu), x)
        if by_lam:
            glam = _like(-_inner(z, _Force.apply(_parts(ctx.form)[0], x, w)), lam)
        if by_mu:
            gmu = _like(-_inner(z, _Force.apply(_parts(ctx.form)[1], x, w)), mu)
        return None, None, None, gx, None, glam, gmu, _like(z, b) if by_b else None

    @staticmethod
    def jvp(ctx, _, __, ___, dx, ____, dlam, dmu, db):
        x, poisson, lam, mu, w, _ = ctx.saved_tensors
        parts = [] if db is None else [db]
        if dx is not None:
            parts.append(-_force(ctx.form, dx, w, lam, mu))
        for number, change in enumerate((dlam, dmu)):
            if change is not None:
                parts.append(-change[:, None, None] * _Force.apply(_parts(ctx.form)[number], x, w))
        return _solve(ctx.form, ctx.active, ctx.rtol, x, poisson, lam, mu, sum(parts[1:], parts[0]))

    @staticmethod
    def vmap(info, in_dims, form, active, rtol, *tensors):
        return _over_batch(_Solve, (form, active, rtol), info, in_dims[3:], tensors)


# ---------------------------------------------------------------------------------------------------------- data terms


def _fidelity(member, rtol, poisson=None, displacement=None, forces=None):
    """The data term of a measurement, with other data where they are given."""
    m, changes = _measurement(member), {}
    if poisson is not None:
        changes["law"] = replace(m.law, poisson=float(poisson))
    if displacement is not None:
        changes["displacement"] = displacement
    if forces is not None:
        own = np.where(m.load.loaded, to_host(forces).reshape(m.displacement.shape), 0.0)
        changes["load"] = Boundary(m.load.fixed, m.load.displacement, own, m.load.open, m.load.total_force)
    if isinstance(member, Fidelity):
        return Fidelity(m.derived(**changes), rtol=member.rtol, on_failure=member.on_failure) if changes else member
    return Fidelity(m.derived(**changes) if changes else m, rtol=rtol)


class _Misfit(Function):
    """(x, Lame numbers, u_m, f) -> J, and the denoised displacement and multiplier, which carry no derivatives."""

    @staticmethod
    def forward(form, members, rtol, x, poisson, lam, mu, displacement, forces):
        device = device_of(x=x)
        count = max(len(t) for t in (x, poisson, displacement, forces) if t is not None)
        members = members * (count // len(members))
        with device.activated():
            goes_on = all(isinstance(one, Fidelity) and one.on_failure == "inf" for one in members)
            on_failure = "inf" if goes_on else "raise"
            moduli, _, sound = take_moduli(device.asarray(x), form, on_failure)
            xp = device.xp
            values = np.full(count, np.inf)
            u, z = (xp.zeros((count, form.geometry.dim, x.shape[-1])) for _ in range(2))
            data = [
                _fidelity(
                    member, rtol, *(None if t is None else t[k % len(t)] for t in (poisson, displacement, forces))
                )
                for k, member in enumerate(members)
            ]

            def evaluate(k):
                found = data[k].evaluate(moduli[k % len(moduli)])
                values[k], u[k], z[k] = found.value, found.linearization_point, found.multiplier

            apart = len(set(map(id, data))) == count  # a data term belongs to one thread
            workers = _workers(device, form, count) if apart else 1
            for_members(evaluate, np.resize(sound, count), on_failure, together=False, workers=workers)
            return device.export(xp.asarray(values)), device.export(u), device.export(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.form, ctx.members, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.save_for_forward(*tensors, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, g, *_):
        x, _, *others = ctx.saved_tensors[:-2]
        _, _, _, by_x, _, *by_others = ctx.needs_input_grad
        gx, *rest = (
            None if slope is None else _like(g.reshape(-1, *(1,) * (slope.ndim - 1)) * slope, tensor).to(tensor.dtype)
            for slope, tensor in zip(_Misfit._slopes(ctx, by_x, *by_others), (x, *others), strict=True)
        )
        return None, None, None, gx, None, *rest

    @staticmethod
    def jvp(ctx, _, __, ___, dx, ____, *others):
        changes = dx, *others
        slopes = _Misfit._slopes(ctx, *(change is not None for change in changes))
        terms = [
            (slope * change.double()).flatten(1).sum(1) if slope.ndim > 1 else slope * change.double()
            for slope, change in zip(slopes, changes, strict=True)
            if slope is not None
        ]
        return sum(terms[1:], terms[0]), None, None

    @staticmethod
    def _slopes(ctx, by_x, by_lam, by_mu, by_u, by_f):
        """The derivatives of each J by x, the Lame numbers, u_m and f that are asked for, None for the others."""
        x, _, lam, mu, _, _, u, z = ctx.saved_tensors
        form, double = ctx.form, x.double()
        lame = (None, None) if lam is None else (lam.double(), mu.double())
        slopes = [-_sensitivity(form, u, z, *lame) if by_x else None]
        for wanted, part in zip((by_lam, by_mu), _parts(form) if by_lam or by_mu else (None, None), strict=True):
            slopes.append(-_inner(z, _Force.apply(part, double, u)) if wanted else None)
        slopes.append(None)
        if by_u:
            held = np.stack([_measurement(one).load.fixed.reshape(u.shape[1:]) for one in ctx.members])
            fixed = as_tensor(held, x).repeat(len(u) // len(held), 1, 1)
            slopes[-1] = (-_force(form, double, z, *lame)).masked_fill(fixed, 0.0)
        return *slopes, z if by_f else None

    @staticmethod
    def vmap(info, in_dims, form, members, rtol, *tensors):
        return _over_batch(_Misfit, (form, members, rtol), info, in_dims[3:], tensors)


class _Nearest(Function):
    """(target, weight, u_m, f) -> the minimiser of the data step."""

    @staticmethod
    def forward(members, rtol, limits, target, weight, displacement, forces):
        out = torch.empty(target.shape, dtype=torch.float64, device=target.device)
        device = device_of(target=target)
        with device.activated():
            steps = _data_steps(members, rtol, target, weight, displacement, forces)
            workers = _workers(device, steps[0][0].measurement.form, len(steps))
            found = side_by_side(lambda step: minimise_data_step(*step, *limits), steps, workers)
            for k, z in enumerate(found):
                out[k] = device.export(z)[0]
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.members, ctx.rtol, (ctx.tolerance, _), *tensors = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        *tensors, z = ctx.saved_tensors
        target = tensors[0]
        device = device_of(target=target)
        with device.activated():
            steps = _data_steps(ctx.members, ctx.rtol, *tensors)
            both = [tuple(device.asarray(t[k : k + 1].double()) for t in (z, g)) for k in range(len(steps))]

            def pull_back(k):
                (fidelity, v, rho), (own, cotangent) = steps[k], both[k]
                return pull_back_data_step(fidelity, own, v, rho, cotangent, ctx.tolerance)

            workers = _workers(device, steps[0][0].measurement.form, len(steps))
            found = side_by_side(pull_back, range(len(steps)), workers)
            gradients = [
                torch.cat([torch.as_tensor(device.export(part)).to(target) for part in parts])
                for parts in zip(*found, strict=True)
            ]
        wanted = ctx.needs_input_grad[3:]
        return (
            None,
            None,
            None,
            *(
                _like(gradient, tensor) if want else None
                for gradient, tensor, want in zip(gradients, tensors, wanted, strict=True)
            ),
        )

    @staticmethod
    def jvp(ctx, *_):
        raise NotImplementedError(
            "the data step has derivatives in reverse mode only: use backward, torch.func.vjp or jacrev in place of "
            "torch.func.jvp or jacfwd"
        )

    @staticmethod
    def vmap(info, in_dims, members, rtol, limits, *tensors):
        return _over_batch(_Nearest, (members, rtol, limits), info, in_dims[3:], tensors)


def _data_steps(members, rtol, target, weight, displacement, forces):
    """For each map of a batch: its data term, target (1, N) and weight (1,)."""
    if not ((weight > 0) & torch.isfinite(weight)).all():
        raise ValueError(f"weight must be positive and finite, got {weight.tolist()}")
    if not (target.abs() < LARGEST_LOGARITHM).all():
        raise ValueError(
            "target must be the natural logarithm of a modulus in pascals, and finite, got values from "
            f"{target.min():g} to {target.max():g}"
        )
    device, steps = device_of(target=target), []
    for k in range(len(target)):
        data = [None if t is None else t[k % len(t)] for t in (displacement, forces)]
        fidelity = _fidelity(members[k % len(members)], rtol, None, *data)
        v = device.asarray(target[k : k + 1].double())
        steps.append((fidelity, v, np.array([float(weight[k % len(weight)])])))
    return steps


def _workers(device, form, count):
    """How many members are worked on at a time: on a device one, whose work is parallel in itself."""
    return 1 if device.is_gpu else threads(form.geometry.n_nodes, count)
