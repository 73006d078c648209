"""Initial maps: the best homogeneous one, or one that the caller gives."""

from __future__ import annotations

import numpy as np

from ..backend.device import attribute_on, device_of
from ..forward.form import check_modulus
from ..forward.solve import forward_state
from ..result import Result

__all__ = ["TISSUE", "given", "homogeneous"]

TISSUE = 12.5e3  # Pa: soft tissue, which learned priors take for the background; used where nothing fixes the scale
FALLBACK = 1e4  # Pa: where noise hides the work that the forces do on the measured displacement
RTOL = 1e-6  # of the two solves: an initial map need not be more accurate


def homogeneous(measurement):
    """Logarithm of the constant modulus that fits the displacement best, in the weighted least-squares sense.

    The displacement of a homogeneous body is a + b / x, with a from the prescribed displacements and b from the forces,
    so that the best 1 / x has a closed form.

    Parameters
    ----------
    measurement : Measurement

    Returns
    -------
    array, shape (N,)
        Where nothing fixes the scale, the logarithm of the modulus of soft tissue. With open dofs, that of the ratio of
        the work of the forces to the energy of a body of modulus one.

    Raises
    ------
    ValueError
        If the displacement goes against the load.
    """
    m, device, xp = measurement, measurement.device.native, measurement.device.xp
    d, n = m.geometry.dim, m.geometry.n_nodes
    if not m.load.force.any():
        return xp.full(n, np.log(TISSUE))
    if m.load.open.any():
        return xp.full(n, np.log(_open_start(m)))
    ones = xp.ones(n)
    solver = m.form.solver(ones, m.load.loaded.reshape(d, n))
    fixed, force = (attribute_on(device, m.load, name).reshape(d, n) for name in ("displacement", "force"))
    b = solver.solve(force, rtol=RTOL).value
    a = forward_state(m.form, ones, fixed, xp.zeros_like(fixed), solver, rtol=RTOL)
    std = attribute_on(device, m, "displacement_std").reshape(d, n)
    seen = attribute_on(device, m.load, "loaded").reshape(d, n) & xp.isfinite(std)
    precision = xp.where(seen, 1 / xp.where(std > 0, std, 1) ** 2, 0.0)
    along = float((precision * b * (attribute_on(device, m, "displacement").reshape(d, n) - a)).sum())
    if not along > 0:
        raise ValueError(
            "the measured displacement goes against the load: no positive modulus explains it. Check the sign and "
            "units (metres) of displacement and the sign of the force"
        )
    return xp.full(n, np.log(float((precision * b * b).sum()) / along))


def _open_start(m):
    """Constant modulus from the force balance along the measured displacement."""
    equations = m.load.loaded
    work = float((m.load.force * m.displacement)[equations].sum())
    energy = float((m.form.force(np.ones(m.geometry.node_shape), m.displacement) * m.displacement)[equations].sum())
    return work / energy if work > 0 and energy > 0 else FALLBACK


def given(start, m):
    """The caller's initial moduli (N,) in pascals, an array or a `Result`, checked against the measurement."""
    x = start.modulus if isinstance(start, Result) else start
    device = device_of(start=x)
    if device.native != m.device.native:
        raise TypeError(f"start is on {device}, but the measurement on {m.device}: they must live in one place")
    x, batch = check_modulus(device.asarray(x), m.form, "start")
    m.form._single(batch, "start", m.geometry.node_shape)
    return x.reshape(-1)
