"""Random errors and transformations of the maps that networks are trained on.

All maps here are standardised and of shape (B, 1, H, W). No study repeats the choice of the constants below; they make
errors that range from hardly visible ones to those that hide the map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

__all__ = ["REACH", "Draws", "blurred", "synthetic_errors", "widened"]

REACH = 6  # pixels from the middle of the blurring kernel to its end, twice the standard deviation of the widest one

# errors that no measurement made, see `synthetic_errors`
BLUR_WIDTHS = (0.3, 2.5)  # range of the standard deviation of the Gaussians, in pixels
BLURRED = 0.6  # share of maps whose noise is blurred
SLOW, SLOW_POINTS = 0.2, 8  # share of maps with slow noise, and points a side from which this is interpolated
NEAR = 0.5  # share of maps whose noise is stronger in and around lesions
LEAST_CONTRAST = 0.2  # difference to the median in s, below which nothing is taken for a lesion
LEAST_NOISE = 0.02  # noise far away from lesions over that in lesions, at least
SMOOTHED, SMOOTHING = 0.25, (-0.3, 1.0)  # share of maps that are blurred, and how much; below zero is sharpened
FAINT = 0.1  # noise that is added to blurred and to divided maps, over other noise, at most
DIVIDED = 0.15  # share of maps of whose lesions one side has another modulus
DIVIDED_SIZES = (0.05, 0.8)  # range of that difference in s, of either sign
DIVIDED_PLACES = (-0.3, 0.3)  # range of the distance of the dividing line from the middle, over the size of the map
INSIDE = 0.5  # least value of the contrast, 1 at its maximum, that counts as lesion there
TINY, TINY_SIZE = 0.1, 0.01  # share of maps whose error is almost zero, and the factor on their error


class Draws:
    """Random numbers for a batch of maps, one for each map, of shape (B, 1, 1, 1).

    Parameters
    ----------
    count : int
        The size B of the batch.
    generator : torch.Generator
        Of the device where the maps are.
    """

    def __init__(self, count: int, generator: torch.Generator):
        self.count = count
        self._at: dict[str, Any] = {"generator": generator, "device": generator.device}

    def coin(self, share: float = 0.5) -> torch.Tensor:
        """True for a random share of the maps."""
        return torch.rand((self.count, 1, 1, 1), **self._at) < share

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """Numbers that are uniform between two bounds."""
        return low + (high - low) * torch.rand((self.count, 1, 1, 1), **self._at)

    def log_uniform(self, low: float, high: float) -> torch.Tensor:
        """Numbers whose logarithm is uniform between those of two bounds."""
        return torch.exp(self.uniform(math.log(low), math.log(high)))

    def normal(self, height: int, width: int) -> torch.Tensor:
        """White noise of unit variance, (B, 1, height, width)."""
        return torch.randn((self.count, 1, height, width), **self._at)

    def noise(self, height: int, width: int) -> torch.Tensor:
        """White noise with a margin on every side, so that `blurred` gives maps of this height and width."""
        return self.normal(height + 2 * REACH, width + 2 * REACH)


def widened(maps: torch.Tensor) -> torch.Tensor:
    """Maps with the margin that `blurred` takes away, in which their outermost pixels are repeated."""
    return functional.pad(maps, (REACH,) * 4, mode="replicate")


def blurred(maps: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Each map blurred by a Gaussian of its own standard deviation in pixels, (B, 1, 1, 1), without its margin."""
    offsets = torch.arange(-REACH, REACH + 1, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)  # (B, 1, 1, 2 REACH + 1)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    count = len(maps)
    channels = maps.transpose(0, 1)  # maps become channels, each of which is a group with its own kernel
    channels = functional.conv2d(functional.conv2d(channels, kernel, groups=count), kernel.mT, groups=count)
    return channels.transpose(0, 1)


def synthetic_errors(truth: torch.Tensor, levels: tuple[float, float], draws: Draws) -> torch.Tensor:
    """Errors of true maps that no measurement made: noise of many kinds, blur, and wrong moduli in parts of lesions.

    Parameters
    ----------
    truth : torch.Tensor, shape (B, 1, H, W)
    levels : (float, float)
        Range of the rms of the noise in s, of which the logarithm is drawn uniformly.
    draws : Draws
        Of B maps.

    Returns
    -------
    torch.Tensor, shape (B, 1, H, W)
    """
    widths = draws.log_uniform(*BLUR_WIDTHS)
    smooth = blurred(widened(truth), widths)
    contrast = (smooth - truth.flatten(2).median(2)[0][..., None, None]).abs()
    contrast = contrast / contrast.amax((2, 3), keepdim=True).clamp(min=LEAST_CONTRAST)

    error = _noise(truth.shape[2:], widths, contrast, draws)
    error = error * (draws.log_uniform(*levels) / error.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6))
    blur = (smooth - truth) * draws.uniform(*SMOOTHING)
    faint = error * (FAINT * draws.uniform(0.0, 1.0))
    error = torch.where(draws.coin(SMOOTHED), blur + faint, error)
    step = _step_in_lesions(contrast, draws)
    error = torch.where(draws.coin(DIVIDED), faint + step, error)
    return torch.where(draws.coin(TINY), TINY_SIZE * error, error)


def _noise(shape, widths, contrast, draws):
    """Noise of any rms: white, blurred or slow; in some maps stronger where the contrast of the truth is."""
    white = draws.noise(*shape)
    slow = functional.interpolate(draws.normal(SLOW_POINTS, SLOW_POINTS), shape, mode="bicubic")
    noise = torch.where(draws.coin(BLURRED), blurred(white, widths), white[..., REACH:-REACH, REACH:-REACH])
    noise = torch.where(draws.coin(SLOW), slow, noise)
    even = draws.uniform(0.0, 1.0) ** 2  # 1 where the noise is as strong everywhere
    return torch.where(draws.coin(NEAR), noise * (even + (1 - even) * contrast + LEAST_NOISE), noise)


def _step_in_lesions(contrast, draws):
    """A constant in the part of the lesions on one side of a random line, zero elsewhere."""
    rows, columns = (torch.arange(n, device=contrast.device) / n - 0.5 for n in contrast.shape[2:])
    angle = draws.uniform(0.0, 2 * math.pi)
    side = rows[:, None] * angle.cos() + columns * angle.sin() > draws.uniform(*DIVIDED_PLACES)
    size = draws.log_uniform(*DIVIDED_SIZES)
    size = torch.where(draws.coin(), size, -size)
    return size * (side & (contrast > INSIDE))
