"""Simulated ultrasound frames: the echoes of scatterers that move with the tissue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..geometry import Grid
from .frames import SOUND_SPEED, sample_spacing

__all__ = ["Scanner", "simulate_frames"]

REACH = 4.5  # half width of the simulated point spread function, in its standard deviations
DENSITY = 10.0  # scatterers in a resolution cell, at which speckle is fully developed (Wagner et al., 1983)
FREQUENCIES = (801, 401)  # by which the spectrum is integrated; twice as many change bounds by less than 1e-3

Motion = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scanner:
    """A linear scan with a point spread function that is the same everywhere: a Gaussian pulse and a Gaussian beam.

    Parameters
    ----------
    shape : (int, int), optional
        Axial samples and lateral lines of a frame.
    pitch : float, optional
        Distance between lines in metres.
    frequency : float, optional
        Centre frequency of the pulse in hertz.
    bandwidth : float, optional
        Width of its spectrum at half its amplitude (-6 dB), over the centre frequency.
    beam_width : float, optional
        Width of the beam at half its amplitude, in metres.
    sampling_frequency : float, optional
        Hertz.
    sound_speed : float, optional
        Metres per second.

    Examples
    --------
    >>> scanner = Scanner(shape=(2078, 256), pitch=40e-3 / 255)
    >>> [f"{n * h * 1e3:.1f} mm" for n, h in zip(scanner.shape, scanner.spacing)]
    ['40.0 mm', '40.2 mm']
    """

    shape: tuple[int, int] = (2078, 256)
    pitch: float = 40e-3 / 255
    frequency: float = 5e6
    bandwidth: float = 0.6
    beam_width: float = 0.6e-3
    sampling_frequency: float = 40e6
    sound_speed: float = SOUND_SPEED

    @property
    def spacing(self) -> tuple[float, float]:
        """Axial and lateral spacing of the samples in metres."""
        return sample_spacing(self.sampling_frequency, self.pitch, self.sound_speed)

    @property
    def wavenumber(self) -> float:
        """Phase of the echo per metre of depth: 4 pi f / c."""
        return 4 * np.pi * self.frequency / self.sound_speed

    @property
    def widths(self) -> tuple[float, float]:
        """Standard deviations in metres of the Gaussian envelopes of the pulse (in depth) and of the beam."""
        half = np.sqrt(2 * np.log(2))
        pulse = half / (np.pi * self.bandwidth * self.frequency)  # seconds
        return self.sound_speed / 2 * pulse, self.beam_width / (2 * half)

    def image(self, positions: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
        """Radio-frequency frame of scatterers at positions (n, 2) in metres, axial and lateral."""
        pulse = self._spread(positions, 0, np.cos)
        beam = self._spread(positions, 1, np.ones_like)
        return (pulse @ sparse.diags_array(amplitudes) @ beam.T).toarray()

    def bound(
        self, window: tuple[float, float], *, snr: float | None = None, decorrelation: float = 0.0
    ) -> tuple[float, float]:
        """Cramer-Rao bound of a displacement that is constant in a window.

        The bound of the delay between two Gaussian signals (Knapp and Carter, IEEE Trans. ASSP 24, 1976) in two
        dimensions, ``1 / var = A int (2 pi f)^2 gamma^2 / (1 - gamma^2) df``, with the area A of the window and the
        coherence gamma of the frames at the spatial frequency f. For signals and noise of one flat band it is the bound
        of Walker and Trahey (IEEE Trans. UFFC 42, 1995).

        Parameters
        ----------
        window : (float, float)
            Size in metres.
        snr, decorrelation : float, optional
            As for `simulate_frames`; one of them is needed.

        Returns
        -------
        (float, float)
            Standard deviation of the axial and of the lateral displacement in metres.

        Raises
        ------
        ValueError
            If there is neither noise nor decorrelation.
        """
        if snr is None and decorrelation == 0:
            raise ValueError("without noise (snr) and decorrelation the bound is zero")
        axes = [np.linspace(-0.5, 0.5, n) / h for n, h in zip(FREQUENCIES, self.spacing, strict=True)]
        pulse, beam = self.widths
        omega = [2 * np.pi * f for f in axes]
        axial = sum(np.exp(-(((omega[0] - sign * self.wavenumber) * pulse) ** 2)) for sign in (-1, 1))
        power = np.outer(axial, np.exp(-((omega[1] * beam) ** 2)))
        element = float(np.prod([f[1] - f[0] for f in axes]))
        power = power / (power.sum() * element)
        noise = 0.0 if snr is None else 10 ** (-snr / 10) * np.prod(self.spacing)
        tiny = np.finfo(float).tiny  # where there is neither signal nor noise
        coherence = (1 - decorrelation) * (power / (power + noise + tiny)) ** 2
        information = coherence / (1 - coherence) * element * np.prod(window)
        bounds = [(information.sum(axis=1 - k) @ omega[k] ** 2) ** -0.5 for k in range(2)]
        return float(bounds[0]), float(bounds[1])

    def _spread(self, positions, axis, carrier) -> sparse.csr_array:
        """Matrix (samples, scatterers) of the point spread function along one axis."""
        n, h, width = self.shape[axis], self.spacing[axis], self.widths[axis]
        reach = int(np.ceil(REACH * width / h))
        sample = np.rint(positions[:, axis] / h).astype(int)[:, None] + np.arange(-reach, reach + 1)
        away = sample * h - positions[:, axis, None]
        value = np.exp(-((away / width) ** 2) / 2) * carrier(self.wavenumber * away)
        inside = (sample >= 0) & (sample < n)
        scatterer = np.broadcast_to(np.arange(len(positions))[:, None], sample.shape)
        return sparse.csr_array((value[inside], (sample[inside], scatterer[inside])), shape=(n, len(positions)))


def simulate_frames(
    scanner: Scanner,
    motion: Motion | tuple[Grid, np.ndarray],
    *,
    snr: float | None = None,
    decorrelation: float = 0.0,
    seed: int | np.random.Generator = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Radio-frequency frames before and after a displacement.

    Point scatterers of equal strength and random sign are placed at random, uniformly and independently; the second
    frame is that of the displaced scatterers.

    Parameters
    ----------
    scanner : Scanner
    motion : callable, or (Grid, numpy.ndarray)
        The displacement in metres at positions in metres, both (n, 2) with the components axial and lateral; or a
        displacement field (2, *grid.shape) as `solve_forward` gives it. The first sample of the first line is at
        position (0, 0). Outside of the grid the field is continued.
    snr : float, optional
        Ratio of the powers of signal and white noise in each frame, in decibels; without noise by default.
    decorrelation : float, optional
        Share of the power of the echoes that is new in the second frame, from 0 to 1, as out-of-plane motion makes it.
        The correlation of both frames becomes sqrt(1 - decorrelation).
    seed : int or numpy.random.Generator, optional

    Returns
    -------
    reference, deformed : numpy.ndarray, shape scanner.shape

    Raises
    ------
    ValueError
        If decorrelation is not between 0 and 1, or the field does not fit its grid.
    """
    if not 0 <= decorrelation <= 1:
        raise ValueError(f"decorrelation must lie between 0 and 1, got {decorrelation}")
    rng = np.random.default_rng(seed)
    move = motion if callable(motion) else _of_field(*motion)
    extent = np.array([(n - 1) * h for n, h in zip(scanner.shape, scanner.spacing, strict=True)])
    widths = np.array(scanner.widths)
    reached = np.abs(move(np.array([[0.0, 0.0], [0.0, extent[1]], [extent[0], 0.0], extent]))).max(axis=0)
    margin = 2 * REACH * widths + 2 * reached  # scatterers that may come into view
    cell = 2 * np.pi * widths.prod()  # area of a resolution cell: (int p^2)^2 / int p^4 of the Gaussian envelope p
    count = int(DENSITY * np.prod(extent + 2 * margin) / cell)
    positions = rng.uniform(-margin, extent + margin, (count, 2))
    amplitudes, new = rng.choice([-1.0, 1.0], size=(2, count))
    later = np.sqrt(1 - decorrelation) * amplitudes + np.sqrt(decorrelation) * new
    frames = scanner.image(positions, amplitudes), scanner.image(positions + move(positions), later)
    if snr is None:
        return frames
    noise = frames[0].std() * 10 ** (-snr / 20)
    a, b = (frame + noise * rng.normal(size=frame.shape) for frame in frames)
    return a, b


def _of_field(grid, field) -> Motion:
    """Linear interpolation of a displacement field, continued beyond the edges of its grid."""
    from scipy.interpolate import RegularGridInterpolator

    field = np.asarray(field, dtype=np.float64)
    if field.shape != (grid.dim, *grid.shape):
        raise ValueError(f"motion must have shape {(grid.dim, *grid.shape)} for its grid, got {field.shape}")
    axes = [h * np.arange(n) for n, h in zip(grid.shape, grid.spacing, strict=True)]
    parts = [RegularGridInterpolator(axes, c, method="linear", bounds_error=False, fill_value=None) for c in field]
    return lambda positions: np.stack([part(positions) for part in parts], axis=1)
