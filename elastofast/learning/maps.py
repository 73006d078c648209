"""The maps of a data set in memory, standardised, and random windows of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from .augmentation import Draws

__all__ = ["Maps"]

NEAR_LESIONS = 0.8  # share of windows with a part of a lesion inside; not studied


@dataclass(frozen=True)
class Maps:
    """Standardised maps of one split of a data set, in memory.

    Attributes
    ----------
    truth : torch.Tensor, shape (n, H, W)
    noisy : torch.Tensor, shape (n, H, W), or None
        The unregularised maps, where the data set has them.
    mask : torch.Tensor of bool, shape (n, H, W)
        True inside a lesion.
    errors : torch.Tensor, shape (n, draws, H, W), or None
        Draws of the error that a reconstruction makes in s, where the data set has them.
    current : Maps or None
        Some of the maps, whose errors are those of reconstructions with the network as it is.
    """

    truth: torch.Tensor
    noisy: torch.Tensor | None
    mask: torch.Tensor
    errors: torch.Tensor | None = None
    current: Maps | None = None

    def to(self, device) -> Maps:
        """The same on another device."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in own.items() if value is not None})

    @classmethod
    def read(cls, data, split, standard, *, count=None, device="cpu") -> Maps:
        """The first maps of a split of a data set.

        Parameters
        ----------
        data : Dataset
            Open.
        split : {"train", "validation", "test"}
        standard : Standard
            How to standardise the moduli.
        count : int, optional
            How many maps; all by default.
        device : str or torch.device, optional
            Where to keep them.

        Raises
        ------
        ValueError
            If the split has no or too few maps.
        """
        indices = np.asarray(data.indices(split))
        if count is not None and not 1 <= count <= len(indices):
            raise ValueError(f"count must be from 1 to the {len(indices)} {split} maps of the data set, got {count}")
        if not len(indices):
            raise ValueError(f"the data set has no {split} maps")
        indices = indices[:count]

        def standardised(modulus):
            return standard.apply(torch.as_tensor(modulus, dtype=torch.float32, device=device))

        noisy = standardised(data.unregularised(indices)) if data.config.get("unregularised", True) else None
        mask = torch.as_tensor(data.mask(indices), device=device).bool()
        errors = None
        if data.config.get("errors") and standard.logarithmic:
            errors = torch.as_tensor(data.errors(indices), device=device) / standard.scale
        return cls(standardised(data.modulus(indices)), noisy, mask, errors)

    def __len__(self):
        return len(self.truth)

    def windows(self, batch, crop, generator, *, near=NEAR_LESIONS, turn=False) -> Callable:
        """Draw the windows of a batch.

        Parameters
        ----------
        batch : int
            Number of windows; the map of each is drawn with replacement.
        crop : int or None
            Side of a window, at most that of the maps; None takes whole maps.
        generator : torch.Generator
            On the device of the maps.
        near : float, optional
            Share of windows that contain a random point of a lesion, because a network learns little from background
            alone.
        turn : bool, optional
            Whether windows are flipped along both axes and, if they are square, transposed. Otherwise they are flipped
            laterally alone, which is the one symmetry of unregularised maps.

        Returns
        -------
        callable
            Takes maps of shape (n, H, W) to the windows, (batch, 1, height, width). Of maps (n, draws, H, W) it takes a
            random draw for each window.
        """
        draws, at = Draws(batch, generator), {"generator": generator, "device": self.truth.device}
        n, *shape = self.truth.shape
        sides = [size if crop is None else min(crop, size) for size in shape]
        index = torch.randint(n, (batch,), **at)
        start = [(torch.rand(batch, **at) * (size - side + 1)).long() for size, side in zip(shape, sides, strict=True)]
        if crop is not None and near:
            start = self._near_lesions(index, start, sides, near, at)
        rows, columns = (s[:, None] + torch.arange(side, device=s.device) for s, side in zip(start, sides, strict=True))
        columns = torch.where(draws.coin()[:, 0, 0], columns.flip(1), columns)
        transposed = None
        if turn:
            rows = torch.where(draws.coin()[:, 0, 0], rows.flip(1), rows)
            transposed = draws.coin()[:, 0] if sides[0] == sides[1] else None

        def take(maps):
            place = [index[:, None, None]]
            if maps.ndim == 4:
                place.append(torch.randint(maps.shape[1], (batch,), **at)[:, None, None])
            out = maps[(*place, rows[:, :, None], columns[:, None, :])]
            return (out if transposed is None else torch.where(transposed, out.mT, out))[:, None]

        return take

    def _near_lesions(self, index, start, sides, near, at):
        """First rows and columns of the windows, a share of which is moved onto a random point of a lesion."""
        shape = self.truth.shape[1:]
        batch = len(index)
        inside = self.mask[index].flatten(1).float()
        wanted = (torch.rand(batch, **at) < near) & inside.any(1)
        # multinomial needs positive weights for maps without a lesion too; what it draws for them is not used
        point = torch.multinomial(torch.where(wanted[:, None], inside, 1.0), 1, generator=at["generator"])[:, 0]
        moved = []
        for axis, place in enumerate((point // shape[1], point % shape[1])):
            first = place - (torch.rand(batch, **at) * sides[axis]).long()
            moved.append(torch.where(wanted, first.clamp(0, shape[axis] - sides[axis]), start[axis]))
        return moved
