"""Figures: modulus maps side by side, a profile through the lesion, the course of a reconstruction.

Figures are made without pyplot, so nothing here needs a display or touches the caller's plotting state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backend.device import to_host
from .geometry import Grid
from .io import write_atomically
from .metrics import region_masks, relative_l2

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from .geometry import Mesh
    from .joint import JointMeasurement
    from .measurement import Measurement
    from .result import Result
    from .tracking.field import Tracking

# colours of Okabe and Ito, which readers with any colour vision can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
QUANTITY = "modulus (kPa)"
LIMIT = 1.2  # upper end of the colour scale over the maximum of the truth
CENTRAL = (0.5, 99.5)  # percentiles of all values between which the colour scale lies without a truth
MISFIT_LIMIT = 3.0  # end of the colour scale of the misfit, in standard deviations of the noise
NOISE_REACH = 5.0  # distances that are drawn, over the correlation length or the distance of two nodes
PROFILE_POINTS = 400  # where a map on a mesh is interpolated along its profile
WIDTH, PANEL_WIDTH = 11.0, 2.6  # inches: of all panels of a row together, and of one at most
RESULT_PANEL = 2.4  # inches, width of a panel in `plot_result`


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of a size in inches, and the style of all figures while it is drawn."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = mpl.RcParams(
        {
            "font.size": 9.0,
            "axes.titlesize": 9.5,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    with mpl.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained", dpi=160)


def plot_maps(
    maps: Mapping[str, ArrayLike],
    geometry: Grid | Mesh,
    path: str | os.PathLike | None = None,
    truth: ArrayLike | None = None,
    *,
    limits: tuple[float, float] | None = None,
    depth: float | None = None,
    profiles: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Modulus maps side by side on one colour scale, with a lateral profile below.

    Parameters
    ----------
    maps : dict of str to array_like, shape geometry.node_shape
        Title and modulus in pascals of each panel.
    geometry : Grid or Mesh
        Two-dimensional. Depth runs down on a `Grid`; a `Mesh` is drawn with its axial coordinate upwards.
    path : path-like, optional
        Where to save the figure; the suffix (.png, .pdf, .svg) chooses the format.
    truth : array_like, shape geometry.node_shape, optional
        True modulus: drawn first, and the relative L2 error goes into each title.
    limits : (float, float), optional
        Ends of the colour scale in pascals. By default from 0 to 1.2 times the truth's maximum, without a
        truth the central 99 % of all values.
    depth : float, optional
        Axial coordinate of the profile in metres. By default through the centre of the lesion (of the truth,
        else of the first map).
    profiles : sequence of str, optional
        Which maps appear in the profile; all by default.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is no map, or a shape does not fit the geometry.
    OSError
        If the figure cannot be written.
    """
    fields = {str(name): _field(value, geometry, f"maps[{name!r}]") for name, value in maps.items()}
    if not fields:
        raise ValueError("maps is empty: nothing to plot")
    if profiles is not None and not set(profiles) <= set(fields):
        raise ValueError(f"profiles must name maps ({', '.join(fields)}), got {list(profiles)}")
    if truth is not None:
        truth = _field(truth, geometry, "truth")
    low, high = _limits(fields, truth) if limits is None else (limit / 1e3 for limit in limits)
    limits = low, high
    if depth is None:
        depth = lesion_depth(next(iter(fields.values())) if truth is None else truth, geometry)

    rows, widths = _map_layout(len(fields), truth is not None)
    panel = min(PANEL_WIDTH, WIDTH / sum(widths))
    tall = panel * _aspect(geometry) * rows + 0.45 * rows  # of the maps with their titles
    with styled_figure(max(panel * sum(widths) + 1.4, 6.0), tall + 2.2) as figure:
        outer = figure.add_gridspec(2, 1, height_ratios=(tall, 2.0))
        places = outer[0].subgridspec(rows, len(widths), width_ratios=widths)
        panels = _draw_maps(figure, places, fields, truth, geometry, limits)
        _mark_depth(panels[0], depth)

        lines = {} if truth is None else {"truth": truth}
        lines |= {name: fields[name] for name in (fields if profiles is None else profiles)}
        axes = figure.add_subplot(outer[1])
        _draw_profiles(axes, lines, geometry, depth, limits)
        axes.set_title(f"profile at axial position {depth * 1e3:.1f} mm (dashed line above)", loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        if title:
            figure.suptitle(title, fontsize=11)
        return _save(figure, path)


def _map_layout(count, truth) -> tuple[int, list[float]]:
    """Number of rows of some maps, and the relative widths of the columns, the first of which may be for the truth."""
    rows = 1 if count <= 3 else math.ceil(count / 4)
    columns = math.ceil(count / rows)
    wide = [1.0 + 0.35 * (rows - 1)] if truth else []  # the truth is drawn larger beside several rows
    return rows, wide + [1.0] * columns


def _draw_maps(figure, places, fields, truth, geometry, limits) -> list:
    """The truth, if there is one, over all rows of some places, then the maps row by row, and their colour bar."""
    panels: list = []
    if truth is not None:
        panels.append(figure.add_subplot(places[:, 0]))
        image = draw_map(panels[0], truth / 1e3, geometry, limits)
        panels[0].set_title("truth")
    first_column = len(panels)
    columns = places.ncols - first_column
    for i, (name, field) in enumerate(fields.items()):
        row, column = divmod(i, columns)
        axes = figure.add_subplot(places[row, column + first_column])
        image = draw_map(axes, field / 1e3, geometry, limits)
        error = "" if truth is None else f"\nrelative error {_error(field, truth, geometry):.3f}"
        axes.set_title(name + error)
        first = column == 0 and (places.nrows > 1 or truth is None)  # one row beside the truth needs no labels
        axes.tick_params(labelleft=first, labelbottom=row == places.nrows - 1)
        if not first:
            axes.set_ylabel("")
        if row < places.nrows - 1:
            axes.set_xlabel("")
        panels.append(axes)
    add_colorbar(figure, image, panels, [*fields.values()], limits)
    return panels


def plot_result(
    result: Result, measurement: Measurement | JointMeasurement, path: str | os.PathLike | None = None
) -> Figure:
    """One reconstruction: modulus, how sure it is, profile, what the fit leaves of the displacement, and convergence.

    Where the noise had to be estimated, its correlation is drawn too.

    Parameters
    ----------
    result : Result
        From `reconstruct`; with `Result.uncertainty` its standard deviation is drawn beside the map.
    measurement : Measurement or JointMeasurement
        What it was reconstructed from; its ``reference`` is drawn as the truth where there is one. If the result is
        relative, both are drawn with geometric mean one. Of several frames, the misfit of the one with the largest chi2
        is drawn.
    path : path-like, optional
        Where to save the figure; the suffix (.png, .pdf, .svg) chooses the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the result does not fit the measurement.
    OSError
        If the figure cannot be written.
    """
    geometry, truth = measurement.geometry, measurement.reference
    modulus, quantity = _field(result.modulus, geometry, "result.modulus"), QUANTITY
    if result.relative:
        quantity = "modulus / geometric mean"
        modulus = _normalised(modulus)
        truth = None if truth is None else _normalised(truth)
    limits = _limits({"modulus": modulus}, truth)
    depth = lesion_depth(modulus if truth is None else truth, geometry)
    fields = {} if truth is None else {"truth": truth}
    fields["modulus"] = modulus

    tall = RESULT_PANEL * _aspect(geometry)
    std = result.std
    columns = len(fields) + 2 + (std is not None)
    with styled_figure(2.75 * columns + 1.0, tall + 3.0) as figure:
        outer = figure.add_gridspec(2, 1, height_ratios=(tall + 0.5, 2.2))
        top = outer[0].subgridspec(1, columns)
        panels: list = []
        for name, field in fields.items():
            panels.append(figure.add_subplot(top[len(panels)]))
            image = draw_map(panels[-1], field / 1e3, geometry, limits)
            panels[-1].set_title(name)
        add_colorbar(figure, image, panels, [modulus], limits, quantity)
        _mark_depth(panels[0], depth)
        if std is not None:
            panels.append(figure.add_subplot(top[len(panels)]))
            _draw_std(figure, panels[-1], _field(std, geometry, "result.std"), geometry)
        panels += _draw_misfit(figure, [top[columns - 2], top[columns - 1]], result, measurement)
        for axes in panels[1:]:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)

        noise = _noise(result)
        estimated = noise is not None and noise.autocorrelation
        bottom = outer[1].subgridspec(1, 3 if estimated else 2, width_ratios=(1.6, 1, 1)[: 3 if estimated else 2])
        axes = figure.add_subplot(bottom[0])
        lines = {"reconstruction" if name == "modulus" else name: field for name, field in fields.items()}
        _draw_profiles(axes, lines, geometry, depth, limits, quantity, width=1.3)
        axes.set_title(f"profile at axial position {depth * 1e3:.1f} mm", loc="left")
        axes.legend(frameon=False)
        _draw_convergence(figure.add_subplot(bottom[1]), result)
        if estimated:
            _draw_noise(figure.add_subplot(bottom[2]), noise, geometry)
        return _save(figure, path)


def plot_tracking(tracking: Tracking, path: str | os.PathLike | None = None) -> Figure:
    """A tracked displacement: both components, the standard deviation of the axial one, and the correlation.

    Parameters
    ----------
    tracking : Tracking
        From `track`. Nodes that were not measured are left blank.
    path : path-like, optional
        Where to save the figure; the suffix (.png, .pdf, .svg) chooses the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    OSError
        If the figure cannot be written.
    """
    grid, um = tracking.grid, 1e6
    std = np.where(tracking.measured, tracking.displacement_std[grid.axial], np.nan)
    panels = {
        "axial displacement (µm)": (um * tracking.displacement[0], "viridis"),
        "lateral displacement (µm)": (um * tracking.displacement[1], "viridis"),
        "axial std (µm)": (um * std, "magma"),
        "correlation": (tracking.correlation, "magma"),
    }
    with styled_figure(WIDTH, RESULT_PANEL * _aspect(grid) + 1.0) as figure:
        for axes, (title, (field, cmap)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            low, high = np.nanpercentile(field, CENTRAL)
            image = draw_map(axes, field, grid, (float(low), float(high)), cmap=cmap)
            axes.set_title(title)
            figure.colorbar(image, ax=axes, location="bottom", extend="both")
        return _save(figure, path)


def _draw_misfit(figure, places, result, measurement) -> list:
    """What the fit leaves of each measured component, in standard deviations of its noise, and the outliers that were
    left out; the two panels. Of several frames, those of the one with the largest chi2.
    """
    geometry = measurement.geometry
    axial, frames = geometry.axial, measurement.frames
    worst = _worst_frame(result)
    m, of_frame = frames[worst], f", frame {worst}" if len(frames) > 1 else ""
    noise = _noise(result)
    if noise is not None:
        m = noise.applied(m)
    measured = np.isfinite(m.displacement_std) & ~m.load.fixed
    fitted, rejected = (
        None if field is None else to_host(field).reshape(len(frames), *m.displacement.shape)[worst]
        for field in (result.displacement, result.rejected)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        misfit = (m.displacement - fitted) / m.displacement_std
    misfit = np.where(measured, misfit, np.nan)
    panels: list = []
    for place, name, component in zip(places, ("axial", "lateral"), (axial, 1 - axial), strict=True):
        axes = figure.add_subplot(place)
        image = draw_map(axes, misfit[component], geometry, (-MISFIT_LIMIT, MISFIT_LIMIT), cmap="RdBu_r")
        axes.set_title(f"{name} misfit{of_frame}")
        if rejected is not None and rejected[component].any():
            at = 1e3 * geometry.points[rejected[component].ravel()]
            axes.plot(at[:, 1 - axial], at[:, axial], "kx", ms=2.5, mew=0.6)
            axes.set_title(f"{name} misfit{of_frame} (x: left out)")
        panels.append(axes)
    bar = figure.colorbar(image, ax=panels, fraction=0.05, pad=0.02, extend="both")
    bar.set_label("(measured − fitted) / std")
    return panels


def _draw_std(figure, axes, std, geometry):
    """The standard deviation of log modulus, about the relative error of the modulus."""
    high = float(np.percentile(std, CENTRAL[1])) or 1.0
    image = draw_map(axes, std, geometry, (0.0, high), cmap="viridis")
    axes.set_title("uncertainty")
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, extend="max" if std.max() > high else "neither")
    bar.set_label("std of log modulus")
    bar.outline.set_visible(False)


def _worst_frame(result):
    """The number of the frame that is explained worst."""
    return int(np.argmax(result.frame_chi2)) if result.frame_chi2 else 0


def _noise(result):
    """The estimated noise, if any, of the frame that is explained worst."""
    return result.noise[_worst_frame(result)] if isinstance(result.noise, list) else result.noise


def _draw_convergence(axes, result):
    """chi2 after every step of a reconstruction."""
    steps = [entry["iteration"] for entry in result.history]
    axes.semilogy(steps, [entry["chi2"] for entry in result.history], "o-", ms=3, lw=1.2, color=COLORS[0])
    axes.axhline(1.0, color="black", lw=0.8, ls="--")
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="iteration", ylabel="chi2")
    axes.grid(alpha=0.25, lw=0.5, which="both")
    axes.set_title(f"{result.status}, chi2 {result.chi2:.3f}", loc="left")


def _draw_noise(axes, noise, geometry):
    """The correlation of an estimated noise along each axis, and the curves of the lengths that were fitted to it."""
    names = ("axial", "lateral") if geometry.axial == 0 else ("lateral", "axial")
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


def _draw_profiles(axes, fields, geometry, depth, limits, quantity=QUANTITY, width=1.2):
    """Lateral profiles of named maps; the truth in black and twice as wide."""
    colors = iter(COLORS * len(fields))
    for name, field in fields.items():
        style = {"color": "black", "lw": 2.0, "zorder": 1} if name == "truth" else {"color": next(colors), "lw": width}
        axes.plot(*lateral_profile(field, geometry, depth), label=name, **style)
    axes.set(xlabel="lateral (mm)", ylabel=quantity, ylim=limits)
    axes.margins(x=0)
    axes.grid(alpha=0.25, lw=0.5)


def _mark_depth(axes, depth):
    """Where the profile is taken, a dashed line."""
    axes.axhline(depth * 1e3, color="white", lw=0.9, ls=(0, (4, 3)))


def _field(value, geometry, name) -> np.ndarray:
    value = np.asarray(to_host(value), dtype=np.float64)
    if geometry.dim != 2:
        raise ValueError(f"geometry must be two-dimensional, got {geometry.dim} dimensions")
    if value.shape != geometry.node_shape:
        raise ValueError(f"{name} must have the geometry's shape {geometry.node_shape}, got {value.shape}")
    return value


def _normalised(field) -> np.ndarray:
    """A modulus without unit, with a geometric mean of one where kilopascals would be drawn."""
    return 1e3 * field / np.exp(np.log(field).mean())


def _error(field, truth, geometry) -> float:
    return relative_l2(field, truth, None if isinstance(geometry, Grid) else geometry.node_weights)


def _limits(maps, truth) -> tuple[float, float]:
    """Ends of the colour scale in kPa."""
    if truth is not None:
        return 0.0, LIMIT * float(truth.max()) / 1e3
    values = np.concatenate([field.ravel() for field in maps.values()]) / 1e3
    low, high = np.percentile(values[np.isfinite(values)], CENTRAL)
    return (float(low), float(high)) if high > low else (0.0, 2 * float(high) or 1.0)


def _aspect(geometry) -> float:
    """Height over width of the body."""
    extent = np.ptp(geometry.points, axis=0)
    return float(extent[geometry.axial] / extent[1 - geometry.axial])


def draw_map(axes, field, geometry, limits, cmap="magma") -> ScalarMappable:
    """One map, axes in millimetres."""
    if isinstance(geometry, Grid):
        (n0, n1), (h0, h1) = geometry.shape, (1e3 * h for h in geometry.spacing)
        image = axes.imshow(
            field,
            extent=(-h1 / 2, (n1 - 0.5) * h1, (n0 - 0.5) * h0, -h0 / 2),
            vmin=limits[0],
            vmax=limits[1],
            cmap=cmap,
        )
    else:
        image = axes.tripcolor(
            *(1e3 * geometry.points.T),
            field,
            triangles=geometry.cells,
            shading="gouraud",
            vmin=limits[0],
            vmax=limits[1],
            cmap=cmap,
        )
        axes.set_aspect("equal")
        axes.margins(0)
    axes.set(xlabel="lateral (mm)", ylabel="axial (mm)")
    axes.spines[:].set_visible(False)
    return image


def add_colorbar(figure, image, panels, fields, limits, quantity=QUANTITY) -> None:
    """Colour bar beside some panels; pointed where one of the fields (pascals) goes beyond the limits (kPa)."""
    low = any(np.nanmin(f) < 1e3 * limits[0] for f in fields)
    high = any(np.nanmax(f) > 1e3 * limits[1] for f in fields)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((low, high), "neither")
    bar = figure.colorbar(image, ax=panels, fraction=0.03, pad=0.015, extend=extend)
    bar.set_label(quantity)
    bar.outline.set_visible(False)


def lesion_depth(field, geometry) -> float:
    """Axial coordinate of the lesion's centre, of the body's if there is no lesion; metres."""
    y = geometry.points[:, geometry.axial]
    try:
        mask = region_masks(field, geometry, guard=0)[0].ravel()
    except ValueError:
        return float((y.min() + y.max()) / 2)
    return float(np.average(y[mask], weights=geometry.node_weights[mask]))


def lateral_profile(field, geometry, depth) -> tuple[np.ndarray, np.ndarray]:
    """Lateral positions in millimetres and modulus in kPa along a line of constant depth."""
    if isinstance(geometry, Grid):
        row = int(np.clip(round(depth / geometry.spacing[0]), 0, geometry.shape[0] - 1))
        return 1e3 * geometry.spacing[1] * np.arange(geometry.shape[1]), field[row] / 1e3
    from matplotlib.tri import LinearTriInterpolator, Triangulation

    x, y = geometry.points.T
    lateral = np.linspace(x.min(), x.max(), PROFILE_POINTS)
    values = LinearTriInterpolator(Triangulation(x, y, geometry.cells), field)(lateral, np.full(PROFILE_POINTS, depth))
    return 1e3 * lateral, np.ma.filled(values, np.nan) / 1e3


def _save(figure, path):
    if path is not None:
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".pdf", ".svg"):
            raise ValueError(f"path must end in .png, .pdf or .svg, got {str(path)!r}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:])
        write_atomically(path, buffer.getvalue())
    return figure
