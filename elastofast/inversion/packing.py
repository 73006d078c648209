"""From the optimiser's last point to results: post-processing, the scale of relative maps, advice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..geometry import Grid
from ..misfit.fidelity import Evaluation
from ..result import CHI2_RANGE, Result, message
from .evidence import residual
from .history import History
from .options import Options
from .scale import force_factor
from .undetermined import UNKNOWN, Undetermined

__all__ = ["correct", "flagged", "pack"]

# Logarithm of the ratio of a measured total force to that of the map above which it is commented on: load cells are
# better than that. Not studied.
FORCE_DIFFERENCE = 0.05


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
    measurements, options: Options, x, data: Evaluation, chi2, frames, status, weight, held, history: History, timing
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
    frames : numpy.ndarray, shape (number of frames, B), or None
        chi2 of each frame of a joint measurement.
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
        frame_chi2 = [] if frames is None else frames[:, k].tolist()
        modulus, relative, of_scale = _scaled(m, own, data.displacement[k], options.limits)
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
                    frame_chi2,
                )
                + of_scale,
                held=float(held[k]),
                chi2=float(chi2[k]),
                frame_chi2=frame_chi2,
                weight=float("nan") if weight is None else float(weight[k]),
                history=history.entries[k],
                seconds=seconds,
                timing=dict(timing),
                relative=relative,
                prior=options.prior_name,
                gradient=options.gradient,
                optimizer=options.optimizer.name,
                geometry=m.geometry,
                poisson=np.reshape(m.law.poisson, m.geometry.node_shape) if m.law.is_map else m.law.poisson,
            )
        )
    return results


def flagged(result: Result, weak: Undetermined) -> Result:
    """The result, which says what of its map the data do not determine; its status does if that is beyond doubt."""
    if not weak.what:
        return result
    nothing = weak.std > UNKNOWN
    text = (
        f"The data {'do not' if nothing else 'hardly'} determine {weak.what}: in that respect the map shows what the "
        "prior prefers. Frames under another load tell (joint=True), a region of known modulus (known), less noise, or "
        "displacements where none were measured; ef.diagnose(m) says what a measurement determines."
    )
    status = "undetermined" if nothing and result.status in ("converged", "stalled") else result.status
    return replace(result, status=status, message=f"{result.message} {text}", undetermined=weak.what)


def _correlated(m, data, k, chi2):
    """Whether chi2 is low because the noise is correlated from node to node, which nobody stated."""
    if not (chi2[k] < CHI2_RANGE[0] and isinstance(m.geometry, Grid) and m.displacement_correlation is None):
        return False
    return residual(m, data.displacement[k].reshape(m.displacement.shape)).correlated


def _scaled(m, x, u, limits):
    """A modulus (N,), whether it is relative, and what there is to say about its scale.

    Known moduli fix it; else one measured total force does, or the geometric mean is one.
    """
    if m.load.force.any():
        return limits.exact(x), False, ""
    found = force_factor(m, x, u)
    if limits.known is None and found is None:
        return x * np.exp(-np.log(x).mean()), True, ""
    if limits.known is None and not limits.given:
        assert found is not None
        return x * found[0], False, ""
    reason, text = "the bounds" if limits.known is None else "the known moduli", ""
    if found is not None and abs(np.log(found[0])) > FORCE_DIFFERENCE:
        text = (
            f" Under {reason} the body answers with {found[2]:.3g} N where load.total_force is {found[1]:.3g} N: they "
            "contradict each other."
        )
    return limits.exact(x), False, text
