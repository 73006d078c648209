"""What is known about forces and displacements: fixed, loaded and open degrees of freedom (dofs); rigid motions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from numbers import Real
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .geometry import Grid, Mesh

__all__ = [
    "Boundary",
    "TotalForce",
    "axis_names",
    "check_support",
    "compression",
    "directions",
    "pieces",
    "rigid_modes",
    "rigid_motion",
]

# tolerances far above rounding errors and far below anything that a geometry resolves
COINCIDENT = 1e-6  # difference of coordinates over the height of the body, below which they are taken as equal
FREE = 1e-10  # singular value over the largest one, below which a rigid motion is taken as free
CONTACTS = "frictionless", "bonded", "measured"  # of the plates, see `compression`
TURNING = 1e-8  # part of a unit rotation in a free motion, above which the motion is taken to turn the body


_HELD: WeakKeyDictionary[Boundary, Grid | Mesh] = WeakKeyDictionary()  # by loads that hold it, the last body checked


class TotalForce(NamedTuple):
    """A measured resultant force: the sum of component ``component`` over ``nodes`` (bool, shape (*node_shape)).

    ``value`` is in newtons (2-D: per metre of thickness). It is the force that acts *on* the body, positive in the
    direction of the axis. ``std`` is the standard deviation of its noise, zero if it is not known.
    """

    component: int
    value: float
    nodes: np.ndarray
    std: float = 0.0


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Boundary:
    """What is known about every degree of freedom (dof): it is fixed, open, or loaded.

    * *fixed*: the displacement is known exactly;
    * *open*: the force is unknown and the displacement is only measured, as on the edges of a region of interest that
      was cut out of a larger body;
    * *loaded*: the force is known (zero inside the body), so equilibrium gives an equation for this dof.

    Parameters
    ----------
    fixed : array of bool, shape (d, *node_shape), optional
        Where the displacement is known; nowhere by default.
    displacement : array of float, shape (d, *node_shape), optional
        Known displacement in metres on fixed dofs, zero elsewhere; zero by default.
    force : array of float, shape (d, *node_shape), optional
        Known nodal force in newtons (2-D: per metre of thickness) on loaded dofs, zero elsewhere; zero by default.
    open : array of bool, shape (d, *node_shape), optional
        Where the force is unknown; nowhere by default.
    total_force : (component, value, nodes) or (component, value, nodes, std), optional
        One measured resultant force on fixed or open dofs, see `TotalForce`. It determines the scale of the modulus if
        all known nodal forces are zero.

    Attributes
    ----------
    loaded : array of bool, shape (d, *node_shape)
        Dofs that are neither fixed nor open.
    n_equations : int
        Number of loaded dofs.

    Raises
    ------
    TypeError
        If a mask is not of dtype bool, or values are not real numbers.
    ValueError
        If nothing is given, shapes differ, values are not finite, fixed and open overlap, or a displacement or a force
        is given for a dof where it has no meaning.
    """

    fixed: np.ndarray
    displacement: np.ndarray
    force: np.ndarray
    open: np.ndarray
    loaded: np.ndarray
    n_equations: int
    total_force: TotalForce | None

    def __init__(
        self,
        fixed: ArrayLike | None = None,
        displacement: ArrayLike | None = None,
        force: ArrayLike | None = None,
        open: ArrayLike | None = None,
        total_force: tuple[int, float, ArrayLike] | tuple[int, float, ArrayLike, float] | None = None,
    ) -> None:
        given = {"fixed": fixed, "displacement": displacement, "force": force, "open": open}
        shapes = {name: np.shape(a) for name, a in given.items() if a is not None}
        if not shapes:
            raise ValueError("Boundary needs at least one of fixed, displacement, force, open")
        first, shape = next(iter(shapes.items()))
        if len(shape) < 2 or shape[0] not in (2, 3):
            raise ValueError(f"{first} must have shape (d, *node_shape) with d = 2 or 3, got {shape}")
        for name, other in shapes.items():
            if other != shape:
                raise ValueError(f"{name} must have the shape of {first}, {shape}, got {other}")

        held, unknown = _mask("fixed", fixed, shape), _mask("open", open, shape)
        moved, applied = _values("displacement", displacement, shape), _values("force", force, shape)
        _refuse(held & unknown, "fixed and open overlap at {n}: a dof is one or the other")
        _refuse(
            (moved != 0) & ~held,
            "displacement must be zero where nothing is fixed, but is not at {n}; "
            "measured displacements belong into the Measurement",
        )
        _refuse((applied != 0) & held, "force must be zero on fixed dofs (the support gives it), but is not at {n}")
        _refuse((applied != 0) & unknown, "force must be zero on open dofs (it is unknown there), but is not at {n}")
        loaded = ~(held | unknown)
        if total_force is not None:
            total_force = _total_force(total_force, ~loaded)
        state = {"fixed": held, "displacement": moved, "force": applied, "open": unknown, "loaded": loaded}
        for name, a in state.items():
            a.setflags(write=False)
            object.__setattr__(self, name, a)
        object.__setattr__(self, "n_equations", int(loaded.sum()))
        object.__setattr__(self, "total_force", total_force)

    def __setstate__(self, state):
        self.__dict__.update(state)
        for a in state.values():
            if isinstance(a, np.ndarray):  # which unpickled arrays are not
                a.setflags(write=False)

    def __repr__(self):
        counts = f"{self.n_equations} loaded, {self.fixed.sum()} fixed, {self.open.sum()} open"
        return f"Boundary({counts} of shape {self.fixed.shape})"

    def check(self, geometry: Grid | Mesh) -> None:
        """Raise ValueError unless the masks fit the geometry, that is, have shape (d, *node_shape)."""
        expected = (geometry.dim, *geometry.node_shape)
        if self.fixed.shape != expected:
            raise ValueError(f"load has shape {self.fixed.shape}, but the geometry needs {expected} (d, *node_shape)")


def _mask(name, a, shape):
    if a is None:
        return np.zeros(shape, bool)
    a = np.asarray(a).copy()
    if a.dtype != bool:
        raise TypeError(f"{name} must be an array of bool, got dtype {a.dtype}")
    return a


def _values(name, a, shape):
    if a is None:
        return np.zeros(shape)
    a = np.asarray(a).copy()
    if a.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {a.dtype}")
    a = a.astype(np.float64)
    _refuse(~np.isfinite(a), f"{name} must be finite, but is not at {{n}}")
    return a


def _refuse(bad, message):
    """Raise ValueError if any dof is bad; ``{n}`` in the message is replaced by their number and the first of them."""
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(message.format(n=f"{int(bad.sum())} dofs, the first {first}"))


def _total_force(total_force, unknown):
    """Checked `TotalForce`; ``unknown`` marks the dofs whose nodal force is not known."""
    try:
        component, value, nodes, std = TotalForce(*total_force)
    except TypeError:
        raise ValueError(f"total_force must be (component, value, nodes), got {total_force!r}") from None
    d, *node_shape = unknown.shape
    if not isinstance(component, int | np.integer) or not 0 <= component < d:
        raise ValueError(f"total_force: component must be a whole number from 0 to {d - 1}, got {component!r}")
    if not (isinstance(value, Real) and np.isfinite(float(value)) and value != 0):
        raise ValueError(f"total_force: value must be finite and not zero (newtons), got {value!r}")
    if not (isinstance(std, Real) and 0 <= float(std) < np.inf):
        raise ValueError(f"total_force: std must be finite and not negative (newtons), got {std!r}")
    nodes = _mask("total_force: nodes", nodes, node_shape)
    if nodes.shape != tuple(node_shape) or not nodes.any():
        raise ValueError(
            f"total_force: nodes must be a mask of shape {tuple(node_shape)} with at least one node, "
            f"got shape {nodes.shape} with {nodes.sum()}"
        )
    if not unknown[component][nodes].all():
        raise ValueError("total_force must be a sum over fixed or open dofs, but some are loaded: their force is known")
    nodes.setflags(write=False)
    return TotalForce(int(component), float(value), nodes, float(std))


def compression(
    geometry: Grid | Mesh,
    pressure: float | None = None,
    strain: float | None = None,
    total_force: float | None = None,
    axis: int | None = None,
    contact: str = "frictionless",
) -> Boundary:
    """Compression between two plates: without friction the experiment of the paper.

    The bottom is fixed along the axis, its middle node is also fixed sideways (in 3-D a second node of the bottom too,
    against rotation), and the sides are free. The top either carries a uniform pressure or is displaced by a given
    strain. Other contacts with the plates change that, see ``contact``. On a `Grid` depth increases with the index, so
    the top, where the transducer is, has index 0. On a `Mesh` the axis points upwards and the bottom is where the
    coordinate is smallest, as in the files of the paper's authors.

    Parameters
    ----------
    geometry : Grid or Mesh
        On a mesh, top and bottom must be flat.
    pressure : float, optional
        Pressure on the top in pascals; negative pulls.
    strain : float, optional
        Displacement of the top over the height of the body; negative pulls. Exactly one of pressure and strain must be
        given, with measured plates at most the pressure.
    total_force : float, optional
        Without ``pressure``: the measured force on the top in newtons (2-D: per metre of thickness), with the sign of
        the strain. It determines the scale of the modulus, which displacements alone do not.
    axis : int, optional
        The axis of compression; by default 0 on a `Grid` and the last coordinate on a `Mesh`.
    contact : {"frictionless", "bonded", "measured"}
        "bonded" plates hold the tissue: no node of top and bottom moves sideways. "measured" takes from the data how
        the tissue moves at the plates, whatever the friction, and whether or not they are flat or tilt: bottom and top
        (the bottom alone where the top carries a known pressure) are open, their displacement is measured with noise.

    Returns
    -------
    Boundary

    Raises
    ------
    TypeError, ValueError
        If not exactly one of pressure and strain is given (with measured plates, a strain), a number is zero or not
        finite, total_force is given with a pressure or has another sign than the strain, axis or contact do not exist,
        or a mesh has no flat top or bottom.

    Examples
    --------
    >>> import elastofast as ef
    >>> load = ef.compression(ef.Grid((65, 65), (5e-4, 5e-4)), pressure=100.0)
    >>> float(load.force[0].sum())  # 100 Pa on 32 mm
    3.2
    """
    if not isinstance(geometry, Grid | Mesh):
        raise TypeError(f"geometry must be a Grid or a Mesh, got {geometry!r}")
    d, grid = geometry.dim, isinstance(geometry, Grid)
    _check_loading(pressure, strain, total_force, contact)
    if axis is None:
        axis = geometry.axial
    if not isinstance(axis, int | np.integer) or not 0 <= axis < d:
        raise ValueError(f"axis must be a whole number from 0 to {d - 1}, got {axis!r}")

    along = geometry.points[:, axis]
    height = np.ptp(along)
    low = np.flatnonzero(along <= along.min() + COINCIDENT * height)
    high = np.flatnonzero(along >= along.max() - COINCIDENT * height)
    top, bottom, push = (low, high, 1.0) if grid else (high, low, -1.0)
    top_area = _face_area(geometry, top, axis)
    for name, area in (("top", top_area), ("bottom", _face_area(geometry, bottom, axis))):
        if not area.any():
            raise ValueError(f"geometry has no flat {name} across axis {axis}; describe the load by a Boundary instead")

    fixed, open_ = np.zeros((2, d, geometry.n_nodes), bool)
    displacement, force = np.zeros((2, d, geometry.n_nodes))
    if contact == "measured":
        open_[:, bottom] = True
        open_[:, top] |= pressure is None
    elif contact == "bonded":
        fixed[:, bottom] = fixed[:, top] = True
        fixed[axis, top] = False
    else:
        fixed[axis, bottom] = True
        _hold_sideways(fixed, geometry.points, bottom, axis)
    if pressure is not None:
        force[axis] = push * pressure * top_area
    if strain is not None:
        fixed[axis, top] = True
        displacement[axis, top] = push * strain * height
    measured = None
    if total_force is not None:
        nodes = np.zeros(geometry.n_nodes, bool)
        nodes[top] = True
        measured = TotalForce(int(axis), push * total_force, nodes.reshape(geometry.node_shape))
    shape = (d, *geometry.node_shape)
    return Boundary(
        fixed=fixed.reshape(shape),
        displacement=displacement.reshape(shape),
        force=force.reshape(shape),
        open=open_.reshape(shape),
        total_force=measured,
    )


def _check_loading(pressure, strain, total_force, contact):
    if contact not in CONTACTS:
        raise ValueError(f"contact must be one of {', '.join(map(repr, CONTACTS))}, got {contact!r}")
    if contact == "measured" and strain is not None:
        raise ValueError("with measured plates leave strain out: the measured displacement of the plates has it")
    if (pressure is None) == (strain is None) and contact != "measured":
        both = "neither" if pressure is None else "both"
        raise ValueError(f"give exactly one of pressure (Pa) and strain (dimensionless), got {both}")
    for name, value in (("pressure", pressure), ("strain", strain), ("total_force", total_force)):
        if value is not None and not (isinstance(value, Real) and np.isfinite(float(value)) and value != 0):
            raise ValueError(f"{name} must be finite and not zero, got {value!r}")
    if strain is not None and abs(strain) >= 1:
        raise ValueError(f"strain must lie between -1 and 1 (0.01 is one per cent), got {strain!r}")
    if total_force is not None and pressure is not None:
        raise ValueError("total_force goes with strain; a pressure already says what the force is")
    if total_force is not None and strain is not None and total_force * strain < 0:
        raise ValueError(f"total_force must have the sign of strain, got {total_force!r} and {strain!r}")


def _hold_sideways(fixed, points, bottom, axis):
    """Fix the middle node of the bottom across the axis, in 3-D also a second node against rotation about the axis."""
    sideways = [i for i in range(points.shape[1]) if i != axis]
    across = points[bottom][:, sideways]
    offset = across - (across.min(axis=0) + across.max(axis=0)) / 2
    distance = np.linalg.norm(offset, axis=1)
    height = np.ptp(points[:, axis])
    # the last one of equally distant nodes, so that node n // 2 of an even grid is fixed whatever the rounding
    middle = np.flatnonzero(distance <= distance.min() + COINCIDENT * height)[-1]
    fixed[sideways, bottom[middle]] = True
    if points.shape[1] == 3:  # the node with the longest lever
        lever = across[:, 0] - across[middle, 0]
        fixed[sideways[1], bottom[np.argmax(np.abs(lever))]] = True


def _face_area(geometry, nodes, axis):
    """Share of each node in the area (2-D: length) of the flat end face that is made of some nodes, shape (N,)."""
    on_face = np.zeros(geometry.n_nodes, bool)
    on_face[nodes] = True
    if isinstance(geometry, Grid):  # node weights are areas, over half a spacing along the axis at an end face
        return np.where(on_face, geometry.node_weights / (geometry.spacing[axis] / 2), 0.0)
    d = geometry.dim
    inside = on_face[geometry.cells]
    hit = inside.sum(axis=1) == d
    faces = geometry.cells[hit][inside[hit]].reshape(-1, d)
    edges = geometry.points[faces[:, 1:]] - geometry.points[faces[:, :1]]
    area = np.sqrt(np.linalg.det(edges @ edges.transpose(0, 2, 1))) / factorial(d - 1)
    return np.bincount(faces.ravel(), np.repeat(area / d, d), minlength=geometry.n_nodes)


def rigid_modes(geometry: Grid | Mesh, nodes: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Displacements without strain: a translation along each axis, then a rotation in each plane of two axes.

    Rotations are about the centre of the nodes and scaled to a largest coordinate of one, so that all modes have a
    similar size; in 2-D the modes are orthogonal.

    Parameters
    ----------
    geometry : Grid or Mesh
    nodes : slice or array of int, optional
        The N nodes at which the modes are evaluated; all by default.

    Returns
    -------
    array of float, shape (3, 2, N) or (6, 3, N)
        In 3-D the rotations are in the planes (0, 1), (0, 2), (1, 2), that is, about the axes 2, 1, 0.
    """
    d = geometry.dim
    if isinstance(geometry, Grid):
        centre = np.array([(n - 1) * h / 2 for n, h in zip(geometry.shape, geometry.spacing, strict=True)])
        reach = centre.max()
    else:
        centre = geometry.points.mean(axis=0)
        reach = np.abs(geometry.points - centre).max()
    centred = (geometry.points[nodes] - centre) / reach
    planes = list(combinations(range(d), 2))
    modes = np.zeros((d + len(planes), d, len(centred)))
    for i in range(d):
        modes[i, i] = 1
    for mode, (i, j) in zip(modes[d:], planes, strict=True):
        mode[i], mode[j] = -centred[:, j], centred[:, i]
    return modes


def rigid_motion(
    geometry: Grid | Mesh, fixed: np.ndarray, displacement: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    """The rigid motion, among those that the fixed dofs allow, that fits a displacement field best.

    Where no dof is fixed, such as in a region with open edges, a field may contain the motion of the probe. It causes
    no force and must not matter, but a shift by many times the displacement that the strain causes would cost digits.

    Parameters
    ----------
    geometry : Grid or Mesh
    fixed : numpy.ndarray of bool, shape (d, *node_shape) or (d, N)
        Dofs that do not move.
    displacement : numpy.ndarray, the same shape
        In metres.
    precision : numpy.ndarray, the same shape
        Weights of the least-squares fit, zero or more.

    Returns
    -------
    numpy.ndarray, the same shape
    """
    d, held = geometry.dim, fixed.reshape(geometry.dim, -1)
    nodes = np.flatnonzero(held.any(axis=0))
    _, s, vt = _held(rigid_modes(geometry, nodes)[:, held[:, nodes]])
    free = vt[s <= FREE * max(s[0], 1)]
    if not len(free):
        return np.zeros(displacement.shape)
    modes = np.tensordot(free, rigid_modes(geometry), 1)
    modes[:, held] = 0.0
    root = np.sqrt(precision.reshape(d, -1))
    weighted = (root * modes).reshape(len(modes), -1)
    rhs = weighted @ (root * displacement.reshape(d, -1)).ravel()
    amounts = np.linalg.lstsq(weighted @ weighted.T, rhs, rcond=FREE)[0]
    return np.tensordot(amounts, modes, 1).reshape(displacement.shape)


def check_support(geometry: Grid | Mesh, load: Boundary) -> None:
    """Check that the body cannot move as a whole without deforming.

    Fixed dofs hold the body, and so do open ones, because their displacement is measured.

    Parameters
    ----------
    geometry : Grid or Mesh
        Each of several separate pieces of a mesh must be held.
    load : Boundary

    Raises
    ------
    TypeError
        If load is not a Boundary.
    ValueError
        If load does not fit the geometry or leaves a rigid motion free; the message says which one and what to do.
    """
    if not isinstance(load, Boundary):
        raise TypeError(f"load must be a Boundary, got {type(load).__name__}")
    if _HELD.get(load) is geometry:
        return
    load.check(geometry)
    d, axes = geometry.dim, axis_names(geometry)
    held = ~load.loaded.reshape(d, -1)
    nodes = np.flatnonzero(held.any(axis=0))
    held, modes = held[:, nodes], rigid_modes(geometry, nodes)
    belongs = pieces(geometry)
    for piece in range(belongs.max() + 1):
        free = _free_motions(modes[:, held & (belongs[nodes] == piece)], axes)
        if free:
            where = f" (the piece of the mesh with node {np.argmax(belongs == piece)})" if belongs.any() else ""
            raise ValueError(
                f"load leaves the body{where} free to move without deforming: {', '.join(free)}. "
                "Fix more displacement components, at different nodes against rotation, "
                "or mark measured edges as open."
            )
    _HELD[load] = geometry


def free_motions(geometry: Grid | Mesh, fixed: np.ndarray) -> list[str]:
    """Names of the rigid motions of a body in one piece that its fixed dofs, a mask (d, *node_shape), allow."""
    held = fixed.reshape(geometry.dim, -1)
    nodes = np.flatnonzero(held.any(axis=0))
    return _free_motions(rigid_modes(geometry, nodes)[:, held[:, nodes]], axis_names(geometry))


def directions(geometry) -> Sequence[str]:
    """What each axis of a grid, or each coordinate of a mesh, is called."""
    if isinstance(geometry, Grid):
        return ("axial", "elevational", "lateral") if geometry.dim == 3 else ("axial", "lateral")
    return "xyz"[: geometry.dim]


def axis_names(geometry) -> list[str]:
    """Each axis by its number and its direction."""
    kind = "axis" if isinstance(geometry, Grid) else "coordinate"
    return [f"{kind} {i} ({name})" for i, name in enumerate(directions(geometry))]


def pieces(geometry) -> np.ndarray:
    """Number of the connected piece that each node belongs to, shape (N,)."""
    if isinstance(geometry, Mesh):
        first = np.repeat(geometry.cells[:, 0], geometry.dim)
        edges = coo_array(
            (np.ones(len(first), bool), (first, geometry.cells[:, 1:].ravel())), shape=(geometry.n_nodes,) * 2
        )
        return connected_components(edges, directed=False)[1]
    return np.zeros(geometry.n_nodes, int)


def _held(held_modes):
    """Singular values and vectors of the motions' values on the held dofs, (n_modes, n_held)."""
    # of the triangular factor, which is small; those of a Gram matrix would lose half of the digits
    n_modes = len(held_modes)
    r = np.linalg.qr(held_modes.T, mode="r") if held_modes.size else np.zeros((0, n_modes))
    return np.linalg.svd(np.vstack([r, np.zeros((n_modes - len(r), n_modes))]))


def _free_motions(held_modes, axes):
    """Names of the motions that vanish on the held dofs; held_modes is (n_modes, n_held)."""
    d = len(axes)
    _, s, vt = _held(held_modes)
    free = vt[s <= FREE * max(s[0], 1)]
    # held dofs lie along the axes, so a translation is free if and only if no dof along its axis is held
    names = [f"translation along {axes[i]}" for i in range(d) if not held_modes[i].any()]
    u, s, _ = np.linalg.svd(free[:, d:].T, full_matrices=False)
    turning = u[:, s > TURNING]  # the rotations that are part of a free motion
    if d == 2:
        return names + ["rotation"] * turning.shape[1]
    about = [axes[3 - i - j] for i, j in combinations(range(d), 2)]  # a plane of two axes turns about the third
    pure = sorted(about[k] for k in range(3) if np.linalg.norm(turning[k]) > 1 - TURNING)
    names += [f"rotation about {axis}" for axis in pure]
    return names + ["rotation about an oblique line"] * (turning.shape[1] - len(pure))
