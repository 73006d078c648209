"""The look of all figures, the painting of one field, and saving."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..backend.device import to_host
from ..geometry import Grid
from ..io import write_atomically
from ..metrics import region_masks

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# colours of Okabe and Ito, which readers with any colour vision can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
QUANTITY = "modulus (kPa)"
LIMIT = 1.2  # upper end of the colour scale over the maximum of the truth
CENTRAL = (0.5, 99.5)  # percentiles of all values between which a colour scale lies without a truth
PROFILE_POINTS = 400  # where a map on a mesh is interpolated along its profile
SCALE_BAR = 0.3  # longest scale bar over the width of the body


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


def save(figure, path):
    """Write a figure, unless path is None; returns the figure."""
    if path is not None:
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".pdf", ".svg"):
            raise ValueError(f"path must end in .png, .pdf or .svg, got {str(path)!r}")
        write_atomically(path, encoded(figure, suffix[1:]))
    return figure


def encoded(figure, kind: str = "png") -> bytes:
    """A figure as the bytes of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def checked(value, geometry, name) -> np.ndarray:
    """A node field of a plane body, as floats; masked values are NaN, which is left blank."""
    if np.ma.isMaskedArray(value):
        value = np.ma.filled(value.astype(float), np.nan)
    value = np.asarray(to_host(value), dtype=np.float64)
    if geometry.dim != 2:
        raise ValueError(f"geometry must be two-dimensional, got {geometry.dim} dimensions")
    if value.shape != geometry.node_shape:
        raise ValueError(f"{name} must have the geometry's shape {geometry.node_shape}, got {value.shape}")
    return value


def aspect(geometry) -> float:
    """Height over width of the body."""
    extent = np.ptp(geometry.points, axis=0)
    return float(extent[geometry.axial] / extent[1 - geometry.axial])


def central(values) -> tuple[float, float]:
    """Ends of a colour scale: the central 99 % of all finite values."""
    values = np.concatenate([np.ravel(own) for own in values])
    low, high = np.percentile(values[np.isfinite(values)], CENTRAL) if np.isfinite(values).any() else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (min(0.0, 2 * float(low)), max(0.0, 2 * float(high)) or 1.0)


def paint(axes, field, geometry, limits, cmap="magma") -> ScalarMappable:
    """One node field as colours, axes in millimetres. Depth runs down on a grid, the axial coordinate up on a mesh."""
    if isinstance(geometry, Grid):
        (n0, n1), (h0, h1) = geometry.shape, (1e3 * h for h in geometry.spacing)
        extent = (-h1 / 2, (n1 - 0.5) * h1, (n0 - 0.5) * h0, -h0 / 2)
        image = axes.imshow(field, extent=extent, vmin=limits[0], vmax=limits[1], cmap=cmap)
    else:
        x, y = 1e3 * geometry.points.T
        shown = {"shading": "gouraud", "vmin": limits[0], "vmax": limits[1], "cmap": cmap}
        image = axes.tripcolor(x, y, field, triangles=geometry.cells, **shown)
        axes.set_aspect("equal")
        axes.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
    axes.set(xlabel="lateral (mm)", ylabel="axial (mm)")
    axes.spines[:].set_visible(False)
    return image


def add_colorbar(figure, image, panels, fields, limits, label=QUANTITY, **options) -> None:
    """Colour bar beside some panels; pointed where one of the fields goes beyond the limits, in the same unit."""
    low = any(np.nanmin(field) < limits[0] for field in fields)
    high = any(np.nanmax(field) > limits[1] for field in fields)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((low, high), "neither")
    options = {"fraction": 0.05, "pad": 0.02} | options
    bar = figure.colorbar(image, ax=panels, extend=extend, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)


def outline(axes, field, geometry, level, **style) -> None:
    """The line on which a node field has a value."""
    if isinstance(geometry, Grid):
        axes.contour(*_coordinates(geometry), field, levels=[level], **style)
    else:
        axes.tricontour(*(1e3 * geometry.points.T), geometry.cells, field, levels=[level], **style)


def _coordinates(grid):
    """Lateral and axial coordinates of the columns and rows in millimetres."""
    return tuple(1e3 * h * np.arange(n) for n, h in zip(grid.shape[::-1], grid.spacing[::-1], strict=True))


def held(known, geometry) -> np.ndarray:
    """The nodes whose modulus was known, from moduli with NaN (or masked) elsewhere."""
    return np.isfinite(checked(known, geometry, "known"))


def hatch(axes, mask, geometry) -> None:
    """Hatch the nodes of a mask."""
    style = {"levels": [0.5, 1.5], "colors": "none", "hatches": ["////"]}
    field = np.asarray(mask, dtype=float).reshape(geometry.node_shape)
    if isinstance(geometry, Grid):
        lines = axes.contourf(*_coordinates(geometry), field, **style)
    else:
        lines = axes.tricontourf(*(1e3 * geometry.points.T), geometry.cells, field, **style)
    lines.set_edgecolor((1, 1, 1, 0.55))
    lines.set_linewidth(0)


def scale_bar(axes, geometry) -> None:
    """A bar of a round length in the lower left corner."""
    import matplotlib.patheffects as effects

    points = 1e3 * geometry.points
    (left, low), (width, height) = (f(points, axis=0)[[1 - geometry.axial, geometry.axial]] for f in (np.min, np.ptp))
    power = 10 ** np.floor(np.log10(SCALE_BAR * width))
    length = max(power * n for n in (1, 2, 5) if power * n <= SCALE_BAR * width)
    down = isinstance(geometry, Grid)
    place = low + (0.94 if down else 0.06) * height
    start = left + 0.05 * width
    dark = [effects.withStroke(linewidth=3.2, foreground=(0, 0, 0, 0.6))]
    axes.plot([start, start + length], [place, place], color="white", lw=2, solid_capstyle="butt", path_effects=dark)
    label = {"ha": "center", "va": "bottom", "color": "white", "fontsize": 7.5}
    thin = [effects.withStroke(linewidth=1.6, foreground=(0, 0, 0, 0.6))]
    shift = (-0.025 if down else 0.025) * height
    axes.text(start + length / 2, place + shift, f"{length:g} mm", **label, path_effects=thin)


def lesion_level(field, geometry) -> float | None:
    """The modulus half-way between background and lesion, by their medians; None if there is no lesion."""
    try:
        target, background = region_masks(field, geometry, guard=0)
    except ValueError:
        return None
    return float((np.median(field[target]) + np.median(field[background])) / 2)


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
