"""From the optimiser's last point to results: post-processing, the scale of relative maps, advice."""

from __future__ import annotations

import numpy as np

from ..backend.device import to_host
from ..geometry import Grid
from ..misfit.fidelity import Evaluation
from ..result import CHI2_RANGE, Result, message
from .evidence import residual
from .history import History
from .options import Options

__all__ = ["correct", "pack"]


def correct(x, apply, shape, limits):
    """Moduli (B, N) after post-processing.

    Parameters
    ----------
    x : array, shape (B, N)
        Moduli in pascals, or relative ones.
    apply : callable
        The correction of maps (B, *shape).
    shape : tuple of int
        Of a map.
    limits : (float, float) or arrays of shape (B, 1)
        Bounds on log x.
    """
    return np.clip(apply(x.reshape(-1, *shape)).reshape(x.shape), *map(np.exp, limits))


def pack(
    measurements, options: Options, x, data: Evaluation, chi2, status, weight, held, history: History, timing
) -> list[Result]:
    """One `Result` for each member of a batch.

    Parameters
    ----------
    measurements : list of Measurement
    options : Options
    x : array, shape (B, N)
        The last moduli.
    data : Evaluation
        The data term there.
    chi2 : numpy.ndarray, shape (B,)
    status : sequence of str
    weight : numpy.ndarray, shape (B,), or None
        None if the run was interrupted before a weight was chosen.
    held : numpy.ndarray, shape (B,)
        Share of the nodes whose modulus lies on a bound.
    history : History
    timing : dict
        Seconds, see `Result`.
    """
    count, seconds = len(measurements), sum(timing.values())
    results = []
    for k, (m, own) in enumerate(zip(measurements, x, strict=True)):
        modulus, relative = _scaled(m, own, data.displacement[k])
        # of several, a copy, so that one result does not keep the arrays of all
        fields = (field.copy() if count > 1 else field for field in (modulus, data.displacement[k]))
        modulus, displacement = (
            m.device.export(field.reshape(shape))
            for field, shape in zip(fields, (m.geometry.node_shape, m.displacement.shape), strict=True)
        )
        results.append(
            Result(
                modulus=modulus,
                displacement=displacement,
                status=status[k],
                message=message(
                    status[k],
                    chi2[k],
                    options.prior_name,
                    weight is not None,
                    float(held[k]),
                    _correlated(m, data, k, chi2),
                    relative,
                ),
                held=float(held[k]),
                chi2=float(chi2[k]),
                weight=float("nan") if weight is None else float(weight[k]),
                history=history.entries[k],
                seconds=seconds,
                timing=dict(timing),
                relative=relative,
                prior=options.prior_name,
                gradient=options.gradient,
                optimizer=options.optimizer.name,
                geometry=m.geometry,
                poisson=m.law.poisson,
            )
        )
    return results


def _correlated(m, data, k, chi2):
    """Whether chi2 is low because the noise is correlated from node to node, which nobody stated."""
    if not (chi2[k] < CHI2_RANGE[0] and isinstance(m.geometry, Grid) and m.displacement_correlation is None):
        return False
    return residual(m, data.displacement[k].reshape(m.displacement.shape)).correlated


def _scaled(m, x, u):
    """A modulus (N,), and whether it is relative; scaled by one measured total force, or to geometric mean one."""
    if m.load.force.any():
        return x, False
    total = m.load.total_force
    if total is None:
        return x * np.exp(-np.log(x).mean()), True
    force = m.form.force(x, u)[total.component]
    predicted = float(to_host(force)[total.nodes.ravel()].sum())
    if not predicted * total.value > 0:
        raise ValueError(
            f"load.total_force is {total.value:g} N, but the reconstructed body answers with {predicted:g} N: "
            "check the sign of the force and of the displacement"
        )
    return x * (total.value / predicted), False
