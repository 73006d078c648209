"""elastofast: tissue stiffness maps from noisy ultrasound displacement fields.

Public names load their modules on first use, so importing the package is quick and pulls in no optional
dependency.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version

__version__ = _version("elastofast")

_HOMES = {
    "boundary": ("Boundary", "compression"),
    "covariance": ("NoiseCovariance",),
    "fidelity": ("Fidelity",),
    "form": ("ElasticForm",),
    "geometry": ("Grid", "Mesh"),
    "io": ("load_modulus", "save_modulus"),
    "laws": ("PlaneStrain", "PlaneStress", "Solid"),
    "measurement": ("Measurement", "load_measurement"),
    "phantoms": ("inclusion", "lesion"),
    "plots": ("plot_maps", "plot_result"),
    "reconstruction": ("Result", "reconstruct"),
    "simulation": ("simulate",),
    "solve": ("solve_forward",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("metrics", "priors")

__all__ = ["__version__", *sorted(_HOME), *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
