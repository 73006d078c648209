"""``elastofast reconstruct --config``: a map is made again from the settings in its file."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from ..result import made_by
from .shared import digest

__all__ = ["asked_for", "compare", "take_over"]

# options of the command that decide about the map, and their defaults; those of a sidecar are kept as its sections
DECIDING: dict[str, Any] = {
    "prior": "auto", "weight": "auto", "gradient": "exact", "optimizer": None, "poisson": "stated", "bounds": None,
    "displacement_std": None, "uncertainty": None, "known": None, "weights": None, "joint": False,
}  # fmt: skip
FROM_SIDECAR: dict[str, Any] = {"sidecar": None, "set": []}
FILES = "known", "weights"  # options that name a file, which must be the same, too


def asked_for(options) -> dict[str, Any]:
    """What was asked for, for the configuration of a map."""
    asked = {name: getattr(options, name) for name in DECIDING}
    return {"asked": asked, "of_files": {name: digest(asked[name]) for name in FILES if asked[name]}}


def take_over(options) -> None:
    """Set the options of the command to those that made a map; its input must be what it was.

    Raises
    ------
    ValueError
        If the file has no such settings, an option contradicts them, or an input is not there or has changed.

    Warns
    -----
    UserWarning
        If versions or build are others.
    """
    from ..io import load_modulus

    config = load_modulus(options.config)[2].get("config") or {}
    if "asked" not in config:
        raise ValueError(
            f"--config: {options.config} was not written by elastofast reconstruct, which alone keeps all settings and "
            "the place of the input"
        )
    for name, default in {**DECIDING, **FROM_SIDECAR}.items():
        if getattr(options, name) != default:
            raise ValueError(
                f"--config has all settings: leave --{name.replace('_', '-').replace('sidecar', 'with')} out"
            )
    vars(options).update(config["asked"])
    files, digests = config.get("files", [config.get("file")]), config["sha256"]
    options.files = options.files or files
    if len(options.files) != len(files):
        raise ValueError(f"--config: {options.config} was made from {len(files)} files, got {len(options.files)}")
    if "sidecar" in config:
        options.sidecar = options.config
    expected = dict(zip(options.files, [digests] if isinstance(digests, str) else digests, strict=True))
    for path, was in [*expected.items(), *((getattr(options, name), own) for name, own in config["of_files"].items())]:
        if not os.path.isfile(path):
            raise ValueError(f"--config: {path} is not there any more: give its new place as FILE")
        if digest(path) != was:
            raise ValueError(
                f"--config: {path} has changed since {options.config} was made from it (its SHA-256 is another): "
                "the map would be another. Without --config it is reconstructed as it is now"
            )
    now = made_by()
    before = {"elastofast": config.get("elastofast"), **config.get("packages", {})}
    here = {"elastofast": now["elastofast"], **now["packages"]}
    changed = [f"{name} {own} then, {here.get(name)} now" for name, own in before.items() if here.get(name) != own]
    built = {name: config.get("build", {}).get(name) for name in ("compiler", "flags", "instruction_set")}
    changed += [
        f"{name} {own} then, {now['build'][name]} now" for name, own in built.items() if now["build"][name] != own
    ]
    if changed:
        warnings.warn(f"the map may differ in its last digits, or more: {'; '.join(changed)}", stacklevel=2)


def compare(path, result) -> str:
    """How the map that was made again compares with the one in the file."""
    from ..backend.device import to_host
    from ..io import load_modulus

    before, now = load_modulus(path)[0], np.asarray(to_host(result.modulus))
    if np.array_equal(before, now):
        return "equal to that in the file, bit for bit"
    return f"differs from that in the file by up to {np.abs(now / before - 1).max():.2g} of it"
