"""Small pictures of fields and tables of facts, as notebooks show them."""

from __future__ import annotations

from html import escape
from io import BytesIO
from typing import Any

import numpy as np

from .backend.device import to_host
from .geometry import Grid, Mesh
from .page import image_source

__all__ = ["picture", "shown"]

PIXELS = 96  # of a mesh's picture along its longer edge, and of the width on the screen
FAR = 1.5  # pixels from the nearest node, in mean distances of nodes, beyond which there is no body


def shown(title: str, facts: dict[str, str], field: Any, geometry: Grid | Mesh) -> str:
    """HTML with a table of facts and a picture of a node field, where matplotlib is installed and the body is plane."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return (
        f'<div style="display:flex;gap:1em;align-items:center">{picture(np.asarray(to_host(field)), geometry)}'
        f"<table><caption><b>{escape(title)}</b></caption>{rows}</table></div>"
    )


def picture(field: Any, geometry: Grid | Mesh) -> str:
    """A node field as an image element; nothing where it cannot be made."""
    try:
        from matplotlib.image import imsave
    except ImportError:
        return ""
    if geometry.dim != 2:
        return ""
    if isinstance(geometry, Grid):
        image, (height, width) = field, (n * h for n, h in zip(geometry.shape, geometry.spacing, strict=True))
    else:
        image, (width, height) = _raster(field, geometry), np.ptp(geometry.points, axis=0)
    file = BytesIO()
    low, high = np.nanpercentile(image, (0.5, 99.5))
    imsave(file, image, vmin=low, vmax=max(high, np.nextafter(low, np.inf)), cmap="magma", format="png")
    size = f'width="{PIXELS}" height="{round(PIXELS * height / width)}"'
    return f'<img alt="map" {size} src="{image_source(file.getvalue())}">'


def _raster(field, mesh):
    """The value of the nearest node at the pixels of a picture, upwards; NaN outside of the body."""
    from scipy.spatial import cKDTree

    low, extent = mesh.points.min(axis=0), np.ptp(mesh.points, axis=0)
    counts = np.maximum(np.round(PIXELS * extent / extent.max()).astype(int), 1)
    x, y = (low[k] + (np.arange(counts[k]) + 0.5) * extent[k] / counts[k] for k in range(2))
    places = np.stack(np.meshgrid(x, y[::-1]), axis=-1)
    distance, nearest = cKDTree(mesh.points).query(places)
    spacing = np.sqrt(mesh.cell_volumes.sum() / mesh.n_nodes)
    return np.where(distance <= FAR * spacing, field.reshape(-1)[nearest], np.nan)
