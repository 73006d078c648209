"""Several measurements of one body, its frames: one modulus is to explain them all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend.device import Device
from .geometry import Grid, Mesh
from .io.measurements import save_measurement
from .laws import Law
from .measurement import Measurement

if TYPE_CHECKING:
    from .forward.form import ElasticForm

__all__ = ["JointMeasurement"]

PER_FRAME = "displacement", "displacement_std", "force_std"  # arguments of `derived` with a leading axis of frames


@dataclass(frozen=True)
class _Loads:
    """The loads of all frames: arrays of shape (frames, d, *node_shape), see `Boundary`."""

    fixed: np.ndarray
    displacement: np.ndarray
    force: np.ndarray
    open: np.ndarray
    loaded: np.ndarray


class JointMeasurement:
    """Frames of one body, each with its own load, noise, missing values and rigid motion, for one map of the modulus.

    Frames are independent measurements: the negative log-likelihood of the modulus is the sum of theirs. Frames without
    any known force say nothing about the scale of the modulus, but neither do they leave one of their own undetermined:
    the displacement of a body that is moved, not loaded, does not depend on the scale. So one frame with a known force
    fixes the scale for all, and frames without any determine one common relative map.

    Parameters
    ----------
    frames : sequence of Measurement
        At least one, on one geometry, with one law, and on one device. Take as displacement of a frame the one since a
        common reference, or the one since the frame before it together with the change of the load.

    Attributes
    ----------
    frames : tuple of Measurement
    geometry : Grid or Mesh
    law : Law
    device : Device
    displacement, displacement_std, force_std : numpy.ndarray, float64, shape (frames, d, *node_shape)
    observed : numpy.ndarray of bool, shape (frames, d, *node_shape)
        Displacements that count as measured.
    reference : numpy.ndarray or None
        The true modulus, of the first frame that has one.

    Raises
    ------
    TypeError, ValueError
        If there is no frame, an entry is no Measurement, or geometry, law or device differ.

    Examples
    --------
    >>> both = ef.JointMeasurement([pressed, sheared])  # doctest: +SKIP
    >>> result = ef.reconstruct(both, prior="tv")  # doctest: +SKIP
    """

    def __init__(self, frames: Sequence[Measurement]) -> None:
        if not isinstance(frames, list | tuple):
            raise TypeError(f"frames must be a list of Measurements, got {type(frames).__name__}")
        if not frames:
            raise ValueError("frames is empty: a map needs at least one Measurement")
        for k, m in enumerate(frames):
            if not isinstance(m, Measurement):
                raise TypeError(f"frames must be a list of Measurements, its entry {k} is {type(m).__name__}")
            for name in ("geometry", "law", "device"):
                first, own = getattr(frames[0], name), getattr(m, name)
                if own != first and not _equal_meshes(own, first):
                    raise ValueError(
                        f"frames must be measurements of one body: {name} is {first!r} in frame 0 and {own!r} in frame "
                        f"{k}. Without joint each has a map of its own"
                    )
        mesh = frames[0].geometry
        self.frames = tuple(m if m.geometry is mesh else m.derived(geometry=mesh) for m in frames)
        self.reference = next((m.reference for m in frames if m.reference is not None), None)

    def __repr__(self):
        return f"JointMeasurement({len(self.frames)} frames of {self.frames[0]!r})"

    @property
    def geometry(self) -> Grid | Mesh:
        """Where the nodes are."""
        return self.frames[0].geometry

    @property
    def law(self) -> Law:
        """The material law."""
        return self.frames[0].law

    @property
    def device(self) -> Device:
        """Where the work is done."""
        return self.frames[0].device

    @property
    def form(self) -> ElasticForm:
        """The `ElasticForm` of this geometry and law."""
        return self.frames[0].form

    @property
    def noise_known(self) -> bool:
        """Whether all frames state their noise."""
        return all(m.noise_known for m in self.frames)

    @property
    def displacement_correlation(self) -> tuple[np.ndarray, ...] | None:
        """The correlation of the noise of the first frame that has one."""
        tables = (m.displacement_correlation for m in self.frames)
        return next((own for own in tables if own is not None), None)

    @property
    def checksum(self) -> str:
        """SHA-256 of the checksums of all frames, see `Measurement.checksum`."""
        return hashlib.sha256(" ".join(m.checksum for m in self.frames).encode()).hexdigest()

    displacement = cached_property(lambda self: self._stacked("displacement"))
    displacement_std = cached_property(lambda self: self._stacked("displacement_std"))
    force_std = cached_property(lambda self: self._stacked("force_std"))
    observed = cached_property(lambda self: self._stacked("observed"))

    @cached_property
    def load(self) -> _Loads:
        """The loads of all frames."""
        names = _Loads.__dataclass_fields__
        return _Loads(**{name: np.stack([getattr(m.load, name) for m in self.frames]) for name in names})

    def derived(self, **changes: Any) -> JointMeasurement:
        """The same with other arguments, those with a value for each dof having one for each frame; no warnings."""
        return JointMeasurement(
            [
                m.derived(**{name: value[k] if name in PER_FRAME else value for name, value in changes.items()})
                for k, m in enumerate(self.frames)
            ]
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write all frames to one file, see `Measurement.save`; `load_frames` reads it.

        Raises
        ------
        ValueError
            If the suffix is unknown, or only some frames have a total force or a correlation of the noise.
        OSError
            If the file cannot be written.
        """
        save_measurement(path, self)

    def _stacked(self, name):
        field = np.stack([getattr(m, name) for m in self.frames])
        field.setflags(write=False)
        return field


def _equal_meshes(one, other):
    """Whether two objects are meshes of the same nodes and cells, as two files of one body have them."""
    if not (isinstance(one, Mesh) and isinstance(other, Mesh)):
        return False
    return one.mean_dilatation == other.mean_dilatation and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("points", "cells")
    )
