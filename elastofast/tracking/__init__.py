"""From ultrasound frames to a displacement field with its noise (docs/tracking.md)."""

from .field import Tracking
from .frames import Frames, read_frames, sample_spacing
from .pair import track, track_sequence
from .speckle import Scanner, simulate_frames

__all__ = [
    "Frames",
    "Scanner",
    "Tracking",
    "read_frames",
    "sample_spacing",
    "simulate_frames",
    "track",
    "track_sequence",
]
