"""One panel each: functions that take axes of matplotlib, or make new ones, and return them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.device import to_host
from .style import (
    CENTRAL,
    COLORS,
    QUANTITY,
    add_colorbar,
    aspect,
    central,
    checked,
    hatch,
    held,
    lateral_profile,
    lesion_depth,
    lesion_level,
    outline,
    paint,
    scale_bar,
    styled_figure,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from ..geometry import Grid, Mesh
    from ..joint import JointMeasurement
    from ..measurement import Measurement
    from ..result import Result

MISFIT_LIMIT = 3.0  # end of the colour scale of the misfit, in standard deviations of the noise
NOISE_REACH = 5.0  # distances that are drawn, over the correlation length or the distance of two nodes
PANEL = 3.0  # inches, width of a picture in axes that are made here
COMPONENTS = ("axial", "lateral")


def draw_modulus(
    modulus: ArrayLike,
    geometry: Grid | Mesh,
    ax: Axes | None = None,
    *,
    limits: tuple[float, float] | None = None,
    contour: ArrayLike | bool = False,
    known: ArrayLike | None = None,
    bar: bool = True,
    colorbar: bool = True,
) -> Axes:
    """A map of the modulus in kilopascals, axes in millimetres.

    Parameters
    ----------
    modulus : array_like, shape geometry.node_shape
        Pascals.
    geometry : Grid or Mesh
        Two-dimensional. Depth runs down on a `Grid`; a `Mesh` is drawn with its axial coordinate upwards.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.
    limits : (float, float), optional
        Ends of the colour scale in pascals; by default the central 99 % of all values.
    contour : bool or array_like, shape geometry.node_shape, optional
        The lesion's outline. Of a map in pascals, such as the truth, or of a mask; if True, of the modulus itself. The
        line is where a map is half-way between the medians of lesion and background, which Otsu's threshold tells
        apart; a map without a lesion has none.
    known : array_like, shape geometry.node_shape, optional
        Moduli that were known and NaN at all other nodes, see ``Result.known``: the nodes that were held are hatched.
    bar : bool
        Whether a scale bar is drawn.
    colorbar : bool
        Whether there is a colour bar beside the map.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If an array does not fit the geometry, or the body is not plane.
    """
    field = checked(modulus, geometry, "modulus") / 1e3
    ends = central([field]) if limits is None else (limits[0] / 1e3, limits[1] / 1e3)
    axes = _axes(ax, geometry)
    image = paint(axes, field, geometry, ends)
    if contour is not False:
        draw_contour(axes, field if contour is True else checked(contour, geometry, "contour"), geometry)
    if known is not None:
        hatch(axes, held(known, geometry), geometry)
    if bar:
        scale_bar(axes, geometry)
    if colorbar:
        add_colorbar(axes.figure, image, axes, [field], ends)
    return axes


def draw_displacement(
    displacement: ArrayLike, geometry: Grid | Mesh, ax: Axes | None = None, *, component: str = "axial"
) -> Axes:
    """One component of a displacement in micrometres.

    Parameters
    ----------
    displacement : array_like, shape (2, *geometry.node_shape)
        Metres. Values that are not finite are left blank.
    geometry : Grid or Mesh
        Two-dimensional.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.
    component : {"axial", "lateral"}

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the shape does not fit the geometry, or there is no such component.
    """
    field = 1e6 * _component(displacement, geometry, component, "displacement")
    axes, limits = _axes(ax, geometry), central([field])
    image = paint(axes, field, geometry, limits, cmap="viridis")
    axes.set_title(f"{component} displacement")
    add_colorbar(axes.figure, image, axes, [field], limits, "displacement (µm)")
    return axes


def draw_misfit(
    result: Result,
    measurement: Measurement | JointMeasurement,
    ax: Axes | None = None,
    *,
    component: str = "axial",
    frame: int | None = None,
    colorbar: bool = True,
) -> Axes:
    """What the fit leaves of a measured component, in standard deviations of its noise; outliers are crossed out.

    Parameters
    ----------
    result : Result
    measurement : Measurement or JointMeasurement
        What it was reconstructed from.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.
    component : {"axial", "lateral"}
    frame : int, optional
        Of several frames; by default the one with the largest chi2.
    colorbar : bool
        Whether there is a colour bar beside it.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the result does not fit the measurement, or there is no such component.
    """
    geometry, frames = measurement.geometry, measurement.frames
    if frame is None:
        frame = worst_frame(result)
    m, noise = frames[frame], noise_of(result, frame)
    if noise is not None:
        m = noise.applied(m)
    fitted, rejected = (
        None if field is None else np.reshape(to_host(field), (len(frames), *m.displacement.shape))[frame]
        for field in (result.displacement, result.rejected)
    )
    measured = np.isfinite(m.displacement_std) & ~m.load.fixed
    with np.errstate(divide="ignore", invalid="ignore"):
        misfit = np.where(measured, (m.displacement - fitted) / m.displacement_std, np.nan)
    axes = _axes(ax, geometry)
    limits = -MISFIT_LIMIT, MISFIT_LIMIT
    image = paint(axes, _component(misfit, geometry, component, "misfit"), geometry, limits, cmap="RdBu_r")
    title = f"{component} misfit" + (f", frame {frame}" if len(frames) > 1 else "")
    if rejected is not None and (crossed := rejected[_index(geometry, component)].ravel()).any():
        at = 1e3 * geometry.points[crossed]
        axes.plot(at[:, 1 - geometry.axial], at[:, geometry.axial], "kx", ms=2.5, mew=0.6)
        title += " (x: left out)"
    axes.set_title(title)
    if colorbar:
        misfit_bar(axes.figure, image, axes)
    return axes


def draw_uncertainty(std: ArrayLike, geometry: Grid | Mesh, ax: Axes | None = None) -> Axes:
    """The standard deviation of log modulus, which is about the relative error of the modulus.

    Parameters
    ----------
    std : array_like, shape geometry.node_shape
        ``Result.std``.
    geometry : Grid or Mesh
        Two-dimensional.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the shape does not fit the geometry.
    """
    field = checked(std, geometry, "std")
    limits = 0.0, float(np.percentile(field, CENTRAL[1])) or 1.0
    axes = _axes(ax, geometry)
    image = paint(axes, field, geometry, limits, cmap="viridis")
    axes.set_title("uncertainty")
    add_colorbar(axes.figure, image, axes, [field], limits, "std of log modulus")
    return axes


def draw_profile(
    maps: Mapping[str, ArrayLike],
    geometry: Grid | Mesh,
    ax: Axes | None = None,
    *,
    depth: float | None = None,
    limits: tuple[float, float] | None = None,
    quantity: str = QUANTITY,
) -> Axes:
    """A cross-section: moduli along a lateral line, that of "truth" in black and twice as wide.

    Parameters
    ----------
    maps : dict of str to array_like, shape geometry.node_shape
        Name and modulus in pascals of each line.
    geometry : Grid or Mesh
        Two-dimensional.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.
    depth : float, optional
        Axial coordinate of the line in metres; by default that of the lesion's centre in the first map.
    limits : (float, float), optional
        Ends of the vertical axis in pascals.
    quantity : str
        Label of the vertical axis, for maps that are not in pascals.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If there is no map, or a shape does not fit the geometry.
    """
    fields = {name: checked(value, geometry, f"maps[{name!r}]") for name, value in maps.items()}
    if not fields:
        raise ValueError("maps is empty: nothing to draw")
    if depth is None:
        depth = lesion_depth(next(iter(fields.values())), geometry)
    axes, colors = _axes(ax), iter(COLORS * len(fields))
    for name, field in fields.items():
        truth = name == "truth"
        style: dict[str, Any] = {"color": "black", "lw": 2.0} if truth else {"color": next(colors), "lw": 1.3}
        axes.plot(*lateral_profile(field, geometry, depth), label=name, zorder=1 if truth else 2, **style)
    axes.set(xlabel="lateral (mm)", ylabel=quantity)
    if limits is not None:
        axes.set_ylim(limits[0] / 1e3, limits[1] / 1e3)
    axes.margins(x=0)
    axes.grid(alpha=0.25, lw=0.5)
    axes.set_title(f"profile at axial position {depth * 1e3:.1f} mm", loc="left")
    return axes


def draw_convergence(result: Result, ax: Axes | None = None) -> Axes:
    """chi2 after every step of a reconstruction.

    Parameters
    ----------
    result : Result
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    axes = _axes(ax)
    steps = [entry["iteration"] for entry in result.history]
    axes.semilogy(steps, [entry["chi2"] for entry in result.history], "o-", ms=3, lw=1.2, color=COLORS[0])
    axes.axhline(1.0, color="black", lw=0.8, ls="--")
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="iteration", ylabel="chi2")
    axes.grid(alpha=0.25, lw=0.5, which="both")
    axes.set_title(f"{result.status}, chi2 {result.chi2:.3f}", loc="left")
    return axes


def draw_noise(noise, geometry, ax=None):
    """The correlation of an estimated noise along each axis, and the curves of the lengths that were fitted to it."""
    axes = _axes(ax)
    names = COMPONENTS if geometry.axial == 0 else COMPONENTS[::-1]
    for name, table, length, h, color in zip(
        names, noise.autocorrelation, noise.correlation_length, geometry.spacing, COLORS, strict=False
    ):
        distance = h * np.arange(len(table))
        axes.plot(1e3 * distance, table, "o", ms=2.5, color=color, label=name)
        if length:
            axes.plot(1e3 * distance, np.exp(-((distance / length) ** 2)), lw=1.0, color=color)
    axes.axhline(0.0, color="black", lw=0.6)
    reach = NOISE_REACH * max(*noise.correlation_length, *geometry.spacing)
    axes.set(xlabel="distance (mm)", ylabel="correlation of the residual", xlim=(0, 1e3 * reach), ylim=(-0.3, 1.05))
    levels = [f"{1e6 * s:.3g}" for s in noise.std if np.isfinite(s)]
    axes.set_title(f"estimated noise, std {', '.join(levels)} µm", loc="left")
    axes.legend(frameon=False)
    return axes


def draw_contour(axes, field, geometry) -> None:
    """The outline of the lesion in a map, or of a mask."""
    level = lesion_level(field, geometry) if (field > 0).all() else 0.5 * float(field.max())
    if level is not None:
        outline(axes, field, geometry, level, colors="white", linewidths=0.9)


def misfit_bar(figure, image, panels) -> None:
    """The colour bar of `draw_misfit`; its scale always ends where that of others does, so both ends are pointed."""
    bar = figure.colorbar(image, ax=panels, fraction=0.05, pad=0.02, extend="both")
    bar.set_label("(measured − fitted) / std")
    bar.outline.set_visible(False)


def worst_frame(result) -> int:
    """The number of the frame that is explained worst."""
    return int(np.argmax(result.frame_chi2)) if result.frame_chi2 else 0


def noise_of(result, frame):
    """The estimated noise of a frame, if any."""
    return result.noise[frame] if isinstance(result.noise, list) else result.noise


def _index(geometry, component) -> int:
    if component not in COMPONENTS:
        raise ValueError(f"component must be 'axial' or 'lateral', got {component!r}")
    return geometry.axial if component == "axial" else 1 - geometry.axial


def _component(field, geometry, component, name) -> np.ndarray:
    field = np.asarray(to_host(field), dtype=np.float64)
    index = _index(geometry, component)
    if field.shape != (2, *geometry.node_shape):
        raise ValueError(f"{name} must have shape {(2, *geometry.node_shape)}, got {field.shape}")
    return checked(field[index], geometry, name)


def _axes(ax, geometry=None) -> Axes:
    """Given axes, or those of a new figure with the proportions of a body."""
    if ax is not None:
        return ax
    height = PANEL * (aspect(geometry) if geometry is not None else 0.7)
    with styled_figure(PANEL + 1.2, height + 0.7) as figure:
        return figure.subplots()
