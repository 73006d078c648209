"""What a reconstruction gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Result", "message"]


@dataclass
class Result:
    """A reconstructed map and how it came about.

    Attributes
    ----------
    modulus : array, shape node_shape
        Pascals; if ``relative``, up to a factor and with geometric mean one.
    displacement : array, shape (d, *node_shape)
        The denoised displacement in metres that belongs to the modulus.
    status : {"converged", "max_iterations", "stalled", "interrupted"}
    message : str
        What the status and chi2 mean and what to do about it.
    chi2 : float
        2 J over the number of independent data; close to and a little below one for a good map.
    weight : float
        Prior weight that was used; NaN if the run was interrupted before it was chosen.
    history : list of dict
        One entry an accepted step: iteration, shape, weight, objective, data, prior, chi2, step, gradient_norm,
        seconds.
    seconds : float
        Wall time; of all that took their steps together.
    timing : dict
        Seconds spent in the data term ("data"), the prior ("prior") and anything else ("rest").
    relative : bool
        True if nothing fixes the scale of the modulus.
    prior, gradient, optimizer : str
        What was used.
    geometry : Grid or Mesh
        Where the nodes are.
    """

    modulus: np.ndarray
    displacement: np.ndarray
    status: str
    message: str
    chi2: float
    weight: float
    history: list[dict[str, Any]] = field(repr=False)
    seconds: float
    relative: bool
    prior: str
    gradient: str
    optimizer: str
    geometry: Any = field(repr=False)
    timing: dict[str, float] = field(repr=False, default_factory=dict)

    def save(self, path):
        """Write the modulus to .npz, .h5, .mat or .vtu, see `save_modulus`."""
        from .io import save_modulus

        save_modulus(path, self, self.geometry)


def message(status, chi2, prior, known):
    """What a status and chi2 mean, and what to do about it; ``known`` if a weight had been chosen."""
    resume = "start=result, weight=result.weight." if known else "start=result; no weight was chosen yet."
    text = {
        "converged": "The objective no longer falls noticeably.",
        "max_iterations": f"The largest number of iterations was reached: raise max_iterations or resume with {resume}",
        "stalled": "No step lowered the objective any more; the map is as good as the solves allow.",
        "interrupted": f"Interrupted; this is the best map so far. Resume with {resume}",
    }[status]
    if prior == "none" and status == "converged":
        text = "Stopped at the first map that explains the data within their noise, or the last that improved."
    if chi2 > 1.3:
        text += (
            f" chi2 is {chi2:.2f}: the data are not explained. displacement_std may be too small, the load or the "
            "Poisson ratio wrong, or the weight too large."
        )
    elif chi2 < 0.7:
        text += (
            f" chi2 is {chi2:.2f}: noise is being fitted. displacement_std may be too large or the weight too small."
        )
    return text
