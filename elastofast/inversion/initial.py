"""Initial maps: the best homogeneous one, or one that the caller gives."""

from __future__ import annotations

import warnings

import numpy as np

from ..backend.device import device_of
from ..forward.form import check_modulus
from ..misfit.fidelity import Fidelity
from ..priors.standard import TISSUE
from ..result import Result

__all__ = ["given", "homogeneous"]

# The compliance of the best homogeneous body, over its standard deviation: below minus the first number the measured
# displacement goes against the load, below the second one the load cannot be seen in the noise.
AGAINST, VISIBLE = 4.0, 2.0
RTOL = 1e-6  # of the solves: an initial map need not be more accurate


def homogeneous(measurement):
    """Logarithm of the constant modulus that fits the displacement best, in the weighted least-squares sense.

    Noise does not bias it, see `Fidelity.homogeneous_compliance`. J is quadratic in the compliance, so that the best
    one of several frames is the mean of theirs, weighted by their precision.

    Parameters
    ----------
    measurement : Measurement or JointMeasurement

    Returns
    -------
    array, shape (N,)
        Where nothing fixes the scale, the logarithm of the modulus of soft tissue.

    Raises
    ------
    ValueError
        If the displacement goes against the load.

    Warns
    -----
    UserWarning
        If the displacement that the load causes is lost in the noise.
    """
    m, xp = measurement, measurement.device.native.xp
    n = m.geometry.n_nodes
    if not m.load.force.any():
        return xp.full(n, np.log(TISSUE))
    frames = [frame for frame in m.frames if frame.load.force.any()]
    each = np.array([_compliance(frame) for frame in frames])
    precision = each[:, 1] ** -2
    compliance, std = float(each[:, 0] @ precision / precision.sum()), float(precision.sum() ** -0.5)
    if compliance < VISIBLE * std:
        warnings.warn(
            f"the displacement that the load causes is lost in the noise: the best homogeneous body has a compliance "
            f"of {compliance:.2g} per pascal with a standard deviation of {std:.2g}. The modulus is a lower bound; "
            "check the units of force and displacement, and displacement_std",
            stacklevel=2,
        )
        compliance = VISIBLE * std
    return xp.full(n, -np.log(compliance))


def _compliance(m):
    """Compliance of the homogeneous body that fits one measurement best, and its standard deviation, per pascal."""
    if not m.still.any():
        raise ValueError("displacement is zero wherever it was measured: nothing moved, so nothing tells the modulus")
    compliance, std = Fidelity.of_batch([m], "exact", RTOL).homogeneous_compliance()
    if compliance < -AGAINST * std:
        raise ValueError(
            "the measured displacement goes against the load: no positive modulus explains it. Check the sign, the "
            "units (metres) and the order of the components of displacement, the direction of the axes, and the sign "
            "of the force"
        )
    return compliance, std


def given(start, m):
    """The caller's initial moduli (N,) in pascals, an array or a `Result`, checked against the measurement."""
    x = start.modulus if isinstance(start, Result) else start
    device = device_of(start=x)
    if device.native != m.device.native:
        raise TypeError(f"start is on {device}, but the measurement on {m.device}: they must live in one place")
    x, batch = check_modulus(device.asarray(x), m.form, "start")
    m.form._single(batch, "start", m.geometry.node_shape)
    return x.reshape(-1)
