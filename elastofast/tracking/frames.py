"""Ultrasound frames: reading them from files, checking them, the distance of their samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..io.containers import read_container

__all__ = ["KINDS", "Frames", "read_frames", "sample_spacing"]

KINDS = ("rf", "b-mode")
SOUND_SPEED = 1540.0  # m/s, the mean of soft tissue, to which scanners are calibrated
SHORTEST = 16  # samples or lines below which an array is not taken for a frame
AXES = {2: "zx", 3: "tzx"}  # of arrays in files, except:
MATLAB_AXES = {2: "zx", 3: "zxt"}


def sample_spacing(sampling_frequency: float, pitch: float, sound_speed: float = SOUND_SPEED) -> tuple[float, float]:
    """Distance between the samples of a scan line, and between lines.

    An echo that arrives at the time t comes from the depth c t / 2.

    Parameters
    ----------
    sampling_frequency : float
        Of the stored signal, in hertz.
    pitch : float
        Distance between neighbouring scan lines in metres.
    sound_speed : float, optional
        In metres per second; 1540 by default, to which scanners are calibrated. All axial lengths are proportional to
        it, so that strains do not depend on it.

    Returns
    -------
    (float, float)
        Axial and lateral spacing in metres.

    Raises
    ------
    ValueError
        If a number is not positive and finite.

    Examples
    --------
    >>> axial, lateral = sample_spacing(sampling_frequency=40e6, pitch=0.15e-3)
    >>> f"{axial * 1e6:.2f} um"
    '19.25 um'
    """
    given = {"sampling_frequency": sampling_frequency, "pitch": pitch, "sound_speed": sound_speed}
    units = {"sampling_frequency": "hertz", "pitch": "metres", "sound_speed": "metres per second"}
    for name, value in given.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite ({units[name]}), got {value}")
    return sound_speed / (2 * sampling_frequency), float(pitch)


@dataclass(frozen=True)
class Frames:
    """Frames of one scan.

    Attributes
    ----------
    data : numpy.ndarray, float64, shape (n, axial samples, lateral lines)
    names : tuple of str
        Where each comes from.
    """

    data: np.ndarray = field(repr=False)
    names: tuple[str, ...]

    def __len__(self):
        return len(self.data)


def as_frame(value: ArrayLike, name: str) -> np.ndarray:
    """One frame as real numbers (axial, lateral), all of them finite; masked samples are outside of the image."""
    frame = np.ma.filled(value, 0) if np.ma.isMaskedArray(value) else np.asarray(value)
    if frame.dtype.kind == "c":
        raise TypeError(
            f"{name} holds complex numbers (IQ data); give the radio-frequency signal, that is "
            "real(iq * exp(2 pi i f t)) with the demodulation frequency f, sampled finely enough, or abs(iq) as B-mode"
        )
    if frame.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {frame.dtype}")
    if frame.ndim != 2 or min(frame.shape) < SHORTEST:
        raise ValueError(
            f"{name} must be one frame with at least {SHORTEST} axial samples and {SHORTEST} lateral lines, in that "
            f"order, got shape {frame.shape}"
        )
    frame = frame.astype(np.float64)
    if not np.isfinite(frame).all():
        bad = np.argwhere(~np.isfinite(frame))
        raise ValueError(
            f"{name} must be finite, got {frame[tuple(bad[0])]} at sample {bad[0][0]} of line {bad[0][1]} "
            f"({len(bad)} such samples); set samples outside the image to 0"
        )
    if np.ptp(frame) == 0:
        raise ValueError(f"{name} is constant ({frame.flat[0]:g}): there is nothing to track")
    return frame


def as_pair(reference: ArrayLike, deformed: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both frames of a pair, checked."""
    a, b = as_frame(reference, "reference"), as_frame(deformed, "deformed")
    if a.shape != b.shape:
        hint = "; one of them is transposed" if a.shape == b.shape[::-1] else ""
        raise ValueError(f"both frames must have one shape, got {a.shape} (reference) and {b.shape} (deformed){hint}")
    if np.array_equal(a, b):
        raise ValueError("both frames are equal: nothing moved; give two different frames")
    return a, b


def as_spacing(spacing: Sequence[float] | None) -> tuple[float, float]:
    """Axial and lateral spacing in metres, checked."""
    if spacing is None:
        raise TypeError(
            "spacing is missing: the distance between axial samples and between lateral lines in metres, for example "
            "sample_spacing(sampling_frequency=40e6, pitch=0.15e-3)"
        )
    try:
        axial, lateral = (float(h) for h in spacing)
    except (TypeError, ValueError):
        raise ValueError(f"spacing must be two numbers, axial and lateral (metres), got {spacing!r}") from None
    if not all(np.isfinite(h) and h > 0 for h in (axial, lateral)):
        raise ValueError(f"spacing must be positive and finite (metres), got {spacing!r}")
    return axial, lateral


def check_extent(shape: tuple[int, ...], spacing: tuple[float, float]) -> None:
    """Refuse frames whose extent no scan has, because their spacing has another unit."""
    low, high = 0.5e-3, 1.0  # metres: from intravascular and skin scans to the deepest ones, with a margin
    for axis, n, h in zip(("axial", "lateral"), shape, spacing, strict=True):
        if not low <= (n - 1) * h <= high:
            raise ValueError(
                f"spacing makes the frame {(n - 1) * h:g} m long along the {axis} axis ({n} samples of {h:g} m); "
                "spacing is in metres"
            )


def read_frames(
    path: str | os.PathLike, variable: str | Sequence[str] | None = None, axes: str | None = None
) -> Frames:
    """Read frames from a MATLAB (v5 or v7.3), HDF5, NPZ, NPY, PNG, TIFF or text file.

    Parameters
    ----------
    path : path-like
        Its format is recognised by its content. Nothing is unpickled.
    variable : str or sequence of str, optional
        Names of the variables that hold the frames, in their order; needed if the file has several that could.
    axes : str, optional
        What the axes of the arrays are, one letter each: z axial, x lateral, t the frame. By default "zx" and, for
        arrays with three axes, "tzx", in MATLAB files "zxt".

    Returns
    -------
    Frames

    Raises
    ------
    OSError
        If the file cannot be opened.
    ImportError
        If a package that the format needs is not installed.
    ValueError
        If the file is damaged, holds no frames, or several variables among which to choose, or axes do not fit.
    """
    path = Path(path)
    container = read_container(path)
    wanted = [variable] if isinstance(variable, str) else variable
    usual = MATLAB_AXES if path.suffix.lower() == ".mat" else AXES
    frames, names = [], []
    for name in _chosen(container, wanted):
        array = np.asarray(container.get(name))
        if container.kind == "PNG or TIFF" and array.ndim >= 3 and array.shape[-1] in (3, 4):
            array = array[..., :3].mean(axis=-1)  # colours, with or without opacity
        order = axes or usual.get(array.ndim, "")
        if sorted(order) not in (sorted("zx"), sorted("tzx")) or len(order) != array.ndim:
            raise ValueError(
                f"{path}: axes must name the {array.ndim} axes of {name}, shape {array.shape}, by the "
                f"letters z (axial), x (lateral) and t (frame), got {axes!r}"
            )
        stack, order = (array, order) if "t" in order else (array[None], "t" + order)
        stack = stack.transpose([order.index(letter) for letter in "tzx"])
        for i, frame in enumerate(stack):
            names.append(f"{path}: {name}" + (f", frame {i}" if len(stack) > 1 else ""))
            frames.append(as_frame(frame, names[-1]))
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise ValueError(f"{path}: the frames have different shapes: {sorted(shapes)}")
    return Frames(np.array(frames), tuple(names))


def _chosen(container, wanted) -> Sequence[str]:
    """Names of the variables that hold the frames."""
    variables = container.variables
    listing = ", ".join(f"{name} {variable.shape}" for name, variable in variables.items()) or "nothing"
    if wanted is not None:
        missing = [name for name in wanted if name not in variables]
        if missing:
            raise ValueError(f"{container.path}: there is no variable {missing[0]!r}; the file holds {listing}")
        return wanted
    possible = [
        name
        for name, variable in variables.items()
        if variable.dtype.kind in "fiuc" and sum(n >= SHORTEST for n in variable.shape) >= 2
    ]
    if len(possible) != 1:
        which = "none of them can be frames" if not possible else f"choose variable= among {', '.join(possible)}"
        raise ValueError(f"{container.path}: {which}; the file holds {listing}")
    return possible
