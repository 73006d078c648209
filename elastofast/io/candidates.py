"""The arrays of a file that may be fields of a measurement: matrices, columns, components and slices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .containers import UNNAMED, Variable
from .roles import Role, role_of, unit_of
from .sources import Sources
from .tables import NAMELESS, stated_unit

__all__ = ["Candidate", "candidates"]

# what the first columns of a table without headings are taken for
USUAL_ORDER = (("coordinate", "x"), ("coordinate", "y"), ("displacement", "x"), ("displacement", "y"))


@dataclass(frozen=True)
class Candidate:
    """An array that may be a field of a measurement.

    Attributes
    ----------
    text : str
        What selects it in a sidecar.
    shape : tuple of int
        Of what is selected, without axes of length one.
    role : Role
        What its name says.
    unit : str
        As the file states it, or empty.
    spacing : tuple of float
        Distances along its axes, where the file states them.
    why : str
        How a slice or a component was chosen, where that was needed.
    """

    text: str
    shape: tuple[int, ...]
    role: Role
    unit: str = ""
    spacing: tuple[float, ...] = ()
    why: str = ""

    @property
    def kind(self) -> str:
        """What sort of field its name says it is."""
        return self.role.kind

    @property
    def axis(self) -> str:
        """Along which axis its name says it is."""
        return self.role.axis

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))


def candidates(sources: Sources) -> list[Candidate]:
    """All arrays that may be fields; of cell arrays, which hold a frame each, only the first."""
    found: list[Candidate] = []
    lengths = {
        int(np.prod(variable.shape))
        for file in sources.files
        for name, variable in file.fields().items()
        if role_of(name).kind == "coordinate" and sum(n > 1 for n in variable.shape) == 1
    }
    for number, file in enumerate(sources.files, 1):
        for name, variable in file.fields().items():
            if (cell := re.search(r"\{(\d+)\}$", name)) and cell[1] != "1" and f"{name[: cell.start()]}{{1}}" in file:
                continue
            role = role_of(name)
            why = ""
            if name == UNNAMED or (number > 1 and not role.kind):  # the name of the file says more
                role = role_of(file.path.name.partition(".")[0])
            elif column := re.fullmatch(NAMELESS.format(r"(\d+)"), name):
                k = int(column[1]) - 1
                role = Role(*USUAL_ORDER[k], ()) if k < len(USUAL_ORDER) else role
                why = "; the columns have no headings, and x, y, u, v is their usual order"
            elif cell:
                why = "; the first of several frames"
            text = name if number == 1 else f"{number}:{name}"
            unit = unit_of(variable.unit or stated_unit(name))
            found += _parts(variable, Candidate(text, variable.shape, role, unit, why=why), lengths)
    return found


def _parts(variable: Variable, whole: Candidate, lengths: set[int]) -> Iterator[Candidate]:
    """The array itself if it is a matrix or a column, else its components, and of volumes and sequences one slice.

    The axes of a slice are those with coordinates, whose ``lengths`` are given, and then the longest.
    """
    text, role, why = whole.text, whole.role, whole.why
    long = [k for k, n in enumerate(variable.shape) if n > 1]
    component = _component_axis(variable.shape, long) if not role.axis else None
    space = [k for k in long if k != component]
    plane = sorted(sorted(space, key=lambda k: (variable.shape[k] not in lengths, -variable.shape[k], k))[:2])
    index = {k: ":" for k in range(len(variable.shape))}
    for k in space:
        if k not in plane:
            index[k] = str(variable.shape[k] // 2)
            why += (
                f"; the array has the shape {variable.shape} and elastofast's grids are two-dimensional: this is the "
                f"middle slice or frame along axis {k}, choose another by its number"
            )
    shape = tuple(variable.shape[k] for k in plane)
    spacing = tuple(variable.spacing[k] for k in plane) if variable.spacing and len(plane) == 2 else ()
    whole = replace(whole, shape=shape, spacing=spacing, why=why)
    if component is None:
        yield replace(whole, text=_selected(text, index))
        return
    # of three components of a volume those in the plane of the slice: component k is along axis k
    numbers = [space.index(k) for k in plane] if len(space) == variable.shape[component] else [0, 1]
    for k in numbers:
        index[component] = str(k)
        yield replace(whole, text=_selected(text, index), role=Role(role.kind or "displacement", "", role.rest))


def _component_axis(shape, long) -> int | None:
    """The axis of an array along which its components are: the first or the last one, if it is 2 or 3 long."""
    if len(long) < 3:
        return None
    return next((k for k in (long[0], long[-1]) if shape[k] in (2, 3)), None)


def _selected(text, index) -> str:
    parts = [index[k] for k in range(len(index))]
    return text if set(parts) == {":"} else f"{text}[{', '.join(parts)}]"
