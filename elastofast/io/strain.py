"""The mean strain of a displacement field, by which wrong units and mixed up axes are noticed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["LARGEST_STRAIN", "SMALLEST_STRAIN", "MeanGradient"]

# Strains that no quasi-static experiment on tissue has, as in `measurement`: a displacement in pixels or millimetres on
# coordinates in metres gives some 1000 %, a displacement in metres on coordinates in pixels some 1e-7 %.
LARGEST_STRAIN, SMALLEST_STRAIN = 1.0, 1e-8
CLEAR = 2.0  # ratio of two strains above which one is called larger; chosen, not studied


@dataclass(frozen=True)
class MeanGradient:
    """The mean gradient of a displacement field.

    Attributes
    ----------
    values : array of float, shape (d, 2)
        Entry (i, j) is the derivative of component i along axis j, i from 0 to d - 1, where d is 1 if only the axial
        component was measured. NaN where it cannot be told.
    """

    values: np.ndarray

    @classmethod
    def of(cls, displacement: np.ndarray, spacing: tuple[float, float]) -> MeanGradient:
        """That of a field of shape (d, n_axial, n_lateral), NaN where it was not measured.

        It is the median of the differences over half the height or half the width, which outliers do not bias.
        """
        found = np.full((len(displacement), 2), np.nan)
        for j in range(2):
            half = displacement.shape[1 + j] // 2
            field = np.moveaxis(displacement, 1 + j, 1)
            slopes = (field[:, half:] - field[:, :-half]) / (half * spacing[j])
            for i, slope in enumerate(slopes):
                measured = slope[np.isfinite(slope)]
                if measured.size:
                    found[i, j] = np.median(measured)
        return cls(found)

    @property
    def strains(self) -> np.ndarray:
        """Axial and lateral strain, shape (d,)."""
        return np.diag(self.values)

    @property
    def known(self) -> bool:
        """Whether enough was measured for the axial strain."""
        return bool(np.isfinite(self.values[0, 0]))

    @property
    def largest(self) -> float:
        """The largest strain, shear included, rotation not."""
        shear = abs(np.nansum([self.values[0, 1], *self.values[1:, 0]])) / 2
        return float(max(*np.nan_to_num(np.abs(self.strains)), shear, 0.0))

    @property
    def stretch(self) -> float:
        """How much the components change along their own directions."""
        return float(np.nansum(np.abs(self.strains)))

    @property
    def across(self) -> float:
        """How much the components change along the other direction, by shear or rotation."""
        return float(np.nansum(np.abs([self.values[0, 1], *self.values[1:, 0]])))

    @property
    def mixed_up(self) -> bool:
        """Whether the components change mainly along the other direction, as if axes were exchanged."""
        return self.across > CLEAR * self.stretch

    @property
    def compressed(self) -> bool:
        """Whether this looks like a compression: stretch, and more of it along depth than across."""
        a = np.abs(self.strains)
        return self.stretch > self.across and (len(a) == 1 or bool(a[0] >= a[1]))

    def clearer_than(self, other: MeanGradient) -> bool:
        """Whether this looks like a compression and the other one does not, or much less."""
        return self.compressed and (not other.compressed or self.stretch > CLEAR * other.stretch)
