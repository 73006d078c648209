"""Whole figures: maps side by side, everything about one result, displacements, a tracked field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..backend.device import to_host
from ..geometry import Grid
from ..metrics import relative_l2
from .panels import (
    COMPONENTS,
    draw_contour,
    draw_convergence,
    draw_misfit,
    draw_modulus,
    draw_noise,
    draw_profile,
    draw_uncertainty,
    misfit_bar,
    noise_of,
    worst_frame,
)
from .style import (
    LIMIT,
    QUANTITY,
    add_colorbar,
    aspect,
    central,
    checked,
    hatch,
    held,
    lesion_depth,
    paint,
    save,
    styled_figure,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from ..geometry import Mesh
    from ..joint import JointMeasurement
    from ..measurement import Measurement
    from ..result import Result
    from ..tracking.field import Tracking

WIDTH, PANEL_WIDTH = 11.0, 2.6  # inches: of all panels of a row together, and of one at most
RESULT_PANEL = 2.4  # inches, width of a panel in `plot_result`


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
    contour: bool = False,
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
    contour : bool
        Whether the lesion's outline is drawn into every map: that of the truth, else each map's own (see
        `draw_modulus`).

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
    fields = {str(name): checked(value, geometry, f"maps[{name!r}]") for name, value in maps.items()}
    if not fields:
        raise ValueError("maps is empty: nothing to plot")
    if profiles is not None and not set(profiles) <= set(fields):
        raise ValueError(f"profiles must name maps ({', '.join(fields)}), got {list(profiles)}")
    if truth is not None:
        truth = checked(truth, geometry, "truth")
    if limits is None:
        limits = _limits(fields, truth)
    if depth is None:
        depth = lesion_depth(next(iter(fields.values())) if truth is None else truth, geometry)

    rows, widths = _map_layout(len(fields), truth is not None)
    panel = min(PANEL_WIDTH, WIDTH / sum(widths))
    tall = panel * aspect(geometry) * rows + 0.45 * rows  # of the maps with their titles
    with styled_figure(max(panel * sum(widths) + 1.4, 6.0), tall + 2.2) as figure:
        outer = figure.add_gridspec(2, 1, height_ratios=(tall, 2.0))
        places = outer[0].subgridspec(rows, len(widths), width_ratios=widths)
        panels = _draw_maps(figure, places, fields, truth, geometry, limits, contour)
        _mark_depth(panels[0], depth)

        lines = {} if truth is None else {"truth": truth}
        lines |= {name: fields[name] for name in (fields if profiles is None else profiles)}
        axes = figure.add_subplot(outer[1])
        draw_profile(lines, geometry, axes, depth=depth, limits=limits)
        axes.set_title(f"{axes.get_title(loc='left')} (dashed line above)", loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        if title:
            figure.suptitle(title, fontsize=11)
        return save(figure, path)


def _map_layout(count, truth) -> tuple[int, list[float]]:
    """Number of rows of some maps, and the relative widths of the columns, the first of which may be for the truth."""
    rows = 1 if count <= 3 else math.ceil(count / 4)
    columns = math.ceil(count / rows)
    wide = [1.0 + 0.35 * (rows - 1)] if truth else []  # the truth is drawn larger beside several rows
    return rows, wide + [1.0] * columns


def _draw_maps(figure, places, fields, truth, geometry, limits, contour) -> list:
    """The truth, if there is one, over all rows of some places, then the maps row by row, and their colour bar."""
    panels: list = []
    style = {"limits": limits, "colorbar": False, "contour": contour and (True if truth is None else truth)}
    if truth is not None:
        panels.append(draw_modulus(truth, geometry, figure.add_subplot(places[:, 0]), **style))
        panels[0].set_title("truth")
    first_column = len(panels)
    columns = places.ncols - first_column
    for i, (name, field) in enumerate(fields.items()):
        row, column = divmod(i, columns)
        place = figure.add_subplot(places[row, column + first_column])
        axes = draw_modulus(field, geometry, place, bar=not panels, **style)
        error = "" if truth is None else f"\nrelative error {_error(field, truth, geometry):.3f}"
        axes.set_title(name + error)
        first = column == 0 and (places.nrows > 1 or truth is None)  # one row beside the truth needs no labels
        axes.tick_params(labelleft=first, labelbottom=row == places.nrows - 1)
        if not first:
            axes.set_ylabel("")
        if row < places.nrows - 1:
            axes.set_xlabel("")
        panels.append(axes)
    _modulus_bar(figure, panels, fields, limits, fraction=0.03, pad=0.015)
    return panels


def _modulus_bar(figure, panels, fields, limits, quantity=QUANTITY, **options) -> None:
    """One colour bar for the moduli in some panels; fields and limits in pascals."""
    kilo = [field / 1e3 for field in fields.values()]
    add_colorbar(figure, _image(panels[-1]), panels, kilo, [limit / 1e3 for limit in limits], quantity, **options)


def _image(axes):
    """What a colour bar belongs to: the picture of a grid, or the coloured triangles of a mesh."""
    return axes.images[0] if axes.images else axes.collections[0]


def plot_result(
    result: Result,
    measurement: Measurement | JointMeasurement,
    path: str | os.PathLike | None = None,
    *,
    contour: bool = False,
) -> Figure:
    """One reconstruction: modulus, how sure it is, profile, what the fit leaves of the displacement, and convergence.

    Nodes that were held at a known modulus are hatched. Where the noise had to be estimated, its correlation is drawn
    too.

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
    contour : bool
        Whether the lesion's outline is drawn into the map: that of the truth, where there is one, else the line
        half-way between background and lesion (see `draw_modulus`).

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
    modulus, quantity = checked(result.modulus, geometry, "result.modulus"), QUANTITY
    if result.relative:
        quantity = "modulus / geometric mean"
        modulus = _normalised(modulus)
        truth = None if truth is None else _normalised(truth)
    limits = _limits({"modulus": modulus}, truth)
    depth = lesion_depth(modulus if truth is None else truth, geometry)
    fields = {} if truth is None else {"truth": truth}
    fields["modulus"] = modulus

    tall = RESULT_PANEL * aspect(geometry)
    columns = len(fields) + 2 + (result.std is not None)
    with styled_figure(2.75 * columns + 1.0, tall + 3.0) as figure:
        outer = figure.add_gridspec(2, 1, height_ratios=(tall + 0.5, 2.2))
        top = outer[0].subgridspec(1, columns)
        places = iter([top[i] for i in range(columns)])
        panels: list = []
        for name, field in fields.items():
            axes = draw_modulus(
                field, geometry, figure.add_subplot(next(places)), limits=limits, bar=not panels, colorbar=False
            )
            axes.set_title(name)
            panels.append(axes)
        _modulus_bar(figure, panels, {"modulus": modulus}, limits, quantity, fraction=0.03, pad=0.015)
        _mark_depth(panels[0], depth)
        if contour:
            draw_contour(panels[-1], modulus if truth is None else truth, geometry)
        if result.known is not None:
            hatch(panels[-1], held(result.known, geometry), geometry)
            panels[-1].set_title("modulus (hatched: known)")
        if result.std is not None:
            panels.append(draw_uncertainty(result.std, geometry, figure.add_subplot(next(places))))
        misfits = [
            draw_misfit(result, measurement, figure.add_subplot(place), component=component, colorbar=False)
            for place, component in zip(places, COMPONENTS, strict=True)
        ]
        misfit_bar(figure, _image(misfits[-1]), misfits)
        for axes in [*panels, *misfits][1:]:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)

        noise = noise_of(result, worst_frame(result))
        estimated = noise is not None and noise.autocorrelation
        bottom = outer[1].subgridspec(1, 3 if estimated else 2, width_ratios=(1.6, 1, 1)[: 3 if estimated else 2])
        lines = {"reconstruction" if name == "modulus" else name: field for name, field in fields.items()}
        axes = figure.add_subplot(bottom[0])
        draw_profile(lines, geometry, axes, depth=depth, limits=limits, quantity=quantity)
        axes.legend(frameon=False)
        draw_convergence(result, figure.add_subplot(bottom[1]))
        if estimated:
            draw_noise(noise, geometry, figure.add_subplot(bottom[2]))
        return save(figure, path)


def plot_displacement(
    result: Result, measurement: Measurement | JointMeasurement, path: str | os.PathLike | None = None
) -> Figure:
    """The measured displacement and the one that belongs to the map, both components.

    Parameters
    ----------
    result : Result
        From `reconstruct`.
    measurement : Measurement or JointMeasurement
        What it was reconstructed from; of several frames the one with the largest chi2 is drawn. What was not measured
        is left blank.
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
    geometry, frame = measurement.geometry, worst_frame(result)
    m = measurement.frames[frame]
    seen = np.isfinite(m.displacement_std) | m.load.fixed if m.noise_known else np.isfinite(m.displacement)
    fields = {
        "measured": np.where(seen, m.displacement, np.nan),
        "fitted": np.reshape(to_host(result.displacement), (len(measurement.frames), *m.displacement.shape))[frame],
    }
    with styled_figure(4 * RESULT_PANEL + 1.6, RESULT_PANEL * aspect(geometry) + 1.5) as figure:
        panels = figure.subplots(1, 4)
        for i, component in enumerate(COMPONENTS):
            index = geometry.axial if component == "axial" else 1 - geometry.axial
            kept = [1e6 * field[index] for field in fields.values()]
            limits = central(kept if np.isfinite(kept[0]).any() else kept[1:])
            pair = panels[2 * i : 2 * i + 2]
            for axes, name, field in zip(pair, fields, kept, strict=True):
                image = paint(axes, field, geometry, limits, cmap="viridis")
                axes.set_title(f"{component}, {name}")
            if not np.isfinite(kept[0]).any():
                pair[0].text(0.5, 0.5, "not measured", transform=pair[0].transAxes, ha="center", va="center")
            label = f"{component} displacement (µm)"
            add_colorbar(figure, image, pair.tolist(), kept[1:], limits, label, location="bottom")
        for axes in panels[1:]:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
        return save(figure, path)


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
    with styled_figure(WIDTH, RESULT_PANEL * aspect(grid) + 1.0) as figure:
        for axes, (title, (field, cmap)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            image = paint(axes, field, grid, central([field]), cmap=cmap)
            axes.set_title(title)
            figure.colorbar(image, ax=axes, location="bottom", extend="both")
        return save(figure, path)


def _mark_depth(axes, depth):
    """Where the profile is taken, a dashed line."""
    axes.axhline(depth * 1e3, color="white", lw=0.9, ls=(0, (4, 3)))


def _normalised(field) -> np.ndarray:
    """A modulus without unit, with a geometric mean of one where kilopascals would be drawn."""
    return 1e3 * field / np.exp(np.log(field).mean())


def _error(field, truth, geometry) -> float:
    return relative_l2(field, truth, None if isinstance(geometry, Grid) else geometry.node_weights)


def _limits(maps, truth) -> tuple[float, float]:
    """Ends of the colour scale in pascals."""
    return central(maps.values()) if truth is None else (0.0, LIMIT * float(truth.max()))
