"""Pictures of maps, displacements, residuals and the course of a reconstruction.

Functions named ``draw_`` take and return axes of matplotlib; those named ``plot_`` make whole figures. Figures are made
without pyplot, so nothing here needs a display or touches the caller's plotting state.
"""

from .figures import plot_displacement, plot_maps, plot_result, plot_tracking
from .panels import (
    draw_convergence,
    draw_displacement,
    draw_misfit,
    draw_modulus,
    draw_profile,
    draw_uncertainty,
)

__all__ = [
    "draw_convergence",
    "draw_displacement",
    "draw_misfit",
    "draw_modulus",
    "draw_profile",
    "draw_uncertainty",
    "plot_displacement",
    "plot_maps",
    "plot_result",
    "plot_tracking",
]
