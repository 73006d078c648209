"""elastofast: tissue stiffness maps from noisy ultrasound displacement fields.

Public names load their modules on first use, so importing the package is quick and pulls in no optional
dependency.
"""

from __future__ import annotations

import logging as _logging
from importlib import import_module
from importlib.metadata import version as _version

__version__ = _version("elastofast")
_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # quiet unless the program sets logging up

_MODULE_NAMES = {
    "boundary": ("Boundary", "compression"),
    "errors": ("DataError", "ElastofastError", "ModulusError", "PriorError", "SingularError", "SolveError"),
    "forward.form": ("ElasticForm",),
    "forward.solve": ("solve_forward",),
    "geometry": ("Grid", "Mesh"),
    "inversion.diagnosis": ("diagnose",),
    "inversion.noise_estimate": ("NoiseEstimate", "estimate_noise"),
    "inversion.reconstruct": ("reconstruct",),
    "inversion.uncertainty": ("uncertainty",),
    "intervals": ("Uncertainty",),
    "io": ("load_modulus", "save_modulus"),
    "joint": ("JointMeasurement",),
    "laws": ("PlaneStrain", "PlaneStress", "Solid"),
    "measurement": ("Measurement", "load_frames", "load_measurement"),
    "misfit.covariance": ("NoiseCovariance",),
    "misfit.fidelity": ("Fidelity",),
    "phantoms": ("inclusion", "lesion"),
    "plots": ("plot_displacement", "plot_maps", "plot_result", "plot_tracking"),
    "report": ("write_report",),
    "result": ("Result",),
    "simulation": ("simulate",),
    "tracking.field": ("Tracking",),
    "tracking.pair": ("track",),
}
_MODULE_OF = {name: module for module, names in _MODULE_NAMES.items() for name in names}
_MODULES = ("metrics", "plots", "priors", "tracking")

__all__ = ["__version__", *sorted(_MODULE_OF), *_MODULES]


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
