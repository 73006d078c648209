"""How far a modulus map is from the truth, and how well its lesions stand out.

The unit of the modulus does not matter as long as all arrays have the same. Region metrics compare the nodes of a
target (a lesion) with those of the background. `region_masks` takes both regions from the truth and never from the
reconstruction, because masks that are found by thresholding the map under test make it look better than it is.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import ArrayLike

from .backend.device import to_host
from .errors import refuse_masked
from .geometry import Grid, Mesh

# settings of SSIM by Wang et al. (IEEE TIP 13, 2004); K1 = 0.01 and K2 = 0.03 are the defaults of scikit-image
SSIM_SIGMA = 1.5  # of the Gaussian window, in nodes
# What a reader would call a lesion: nodes that hang together, whose modulus differs from the median of the map by this
# factor at least, and as many of them as the smallest lesion of `phantoms.lesion` has (three node distances across).
SUSPICIOUS_CONTRAST = 1.5
SMALLEST_LESION = 7
FOUND_SHARE = 0.25  # of a lesion that such a region has to cover for the lesion to count as found
SSIM_WINDOW = 11  # nodes on each side of the window, which a map must have at least


def relative_l2(x: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Relative L2 error, ``||x - truth|| / ||truth||``.

    Parameters
    ----------
    x, truth : array_like, same shape
    weights : array_like, same size, optional
        Area that each node represents, such as ``mesh.node_weights``; equal by default.

    Raises
    ------
    ValueError
        If the shapes differ or values are not finite.
    """
    x, truth, w = _pair(x, truth, weights)
    return float(np.sqrt((w @ (x - truth) ** 2) / (w @ truth**2)))


def rmse(x: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Root-mean-square error, ``sqrt(mean((x - truth)^2))``, in the unit of the maps; see `relative_l2`."""
    x, truth, w = _pair(x, truth, weights)
    return float(np.sqrt(w @ (x - truth) ** 2))


def mae(x: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean absolute error, ``mean(|x - truth|)``, in the unit of the maps; see `relative_l2`."""
    x, truth, w = _pair(x, truth, weights)
    return float(w @ np.abs(x - truth))


def symmetric_rms(x: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Symmetric relative RMS error, ``sqrt(mean((2 (x - truth) / (x + truth))^2))``.

    Mohammadi, Doyley and Cetin report this error for their comp-elast data, as a mean over the nodes without weights.
    Both maps must be positive. Arguments as for `relative_l2`.
    """
    x, truth, w = _pair(x, truth, weights)
    if min(x.min(), truth.min()) <= 0:
        raise ValueError("x and truth must be positive for the symmetric error")
    return float(np.sqrt(w @ (2 * (x - truth) / (x + truth)) ** 2))


def psnr(x: ArrayLike, truth: ArrayLike, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in decibels, ``10 log10(data_range^2 / mean((x - truth)^2))``.

    Parameters
    ----------
    x, truth : array_like, same shape
    data_range : float, optional
        By default ``truth.max() - truth.min()``, which does not depend on the reconstruction.

    Raises
    ------
    ValueError
        If the shapes differ, values are not finite, or the truth is constant and no range is given.
    """
    from skimage.metrics import peak_signal_noise_ratio

    _pair(x, truth, None)
    x, truth = np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    with np.errstate(divide="ignore"):  # infinite for equal maps
        return float(peak_signal_noise_ratio(truth, x, data_range=_range(truth, data_range)))


def ssim(x: ArrayLike, truth: ArrayLike, data_range: float | None = None) -> float:
    """Structural similarity of two maps on a grid, with the settings of Wang et al. (IEEE TIP 13, 2004).

    Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance (scikit-image).

    Parameters
    ----------
    x, truth : array_like, same 2-D shape, 11 nodes or more along each axis
    data_range : float, optional
        By default ``truth.max() - truth.min()``.

    Raises
    ------
    ValueError
        If the maps are not 2-D, differ in shape, are too small or not finite, or the truth is constant and
        no range is given.
    """
    from skimage.metrics import structural_similarity

    _pair(x, truth, None)
    x, truth = np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < SSIM_WINDOW:
        raise ValueError(
            f"ssim needs maps on a grid of at least {SSIM_WINDOW} x {SSIM_WINDOW} nodes, got shape {x.shape}"
        )
    return float(
        structural_similarity(
            truth,
            x,
            data_range=_range(truth, data_range),
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
    )


def cnre(
    x: ArrayLike, target: ArrayLike, background: ArrayLike, weights: ArrayLike | None = None, decibel: bool = False
) -> float:
    """Elastographic contrast-to-noise ratio, ``2 (m_B - m_T)^2 / (v_B + v_T)``.

    m and v are the means and variances over the target T and the background B (Varghese and Ophir, Ultrasound Med.
    Biol. 24, 1998, who define the ratio for strain). Not to be confused with `cnr`.

    Parameters
    ----------
    x : array_like
    target, background : array_like of bool, shape of x
    weights : array_like, size of x, optional
        Area of each node.
    decibel : bool, optional
        Return ``10 log10`` of the ratio.

    Raises
    ------
    ValueError
        If shapes differ, a mask is empty, or both overlap.
    """
    (mt, vt), (mb, vb) = _moments(x, target, background, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.float64(2 * (mb - mt) ** 2) / (vb + vt)
        return float(10 * np.log10(value) if decibel else value)


def cnr(x: ArrayLike, target: ArrayLike, background: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Contrast-to-noise ratio of B-mode imaging, ``|m_B - m_T| / sqrt(v_B + v_T)``; arguments as for `cnre`."""
    (mt, vt), (mb, vb) = _moments(x, target, background, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.abs(mb - mt) / np.sqrt(np.float64(vb + vt)))


def gcnr(
    x: ArrayLike, target: ArrayLike, background: ArrayLike, weights: ArrayLike | None = None, bins: int = 100
) -> float:
    """Generalised contrast-to-noise ratio: one minus the overlap of the two histograms.

    It is 1 if some rule tells every value of the lesion from every value of the background, and 0 if no rule does
    better than chance. No monotonic transformation of the values can raise it (Rodriguez-Molares et al., IEEE
    TUFFC 67, 2020).

    Parameters
    ----------
    x, target, background, weights
        As in `cnre`.
    bins : int, optional
        Number of histogram bins of equal width over the range of both regions.

    Raises
    ------
    ValueError
        As `cnre`.
    """
    x, w, target, background = _regions(x, target, background, weights)
    both = target | background
    edges = np.linspace(x[both].min(), x[both].max(), bins + 1)
    if edges[0] == edges[-1]:
        return 0.0
    t, b = (np.histogram(x[mask], edges, weights=w[mask])[0] / w[mask].sum() for mask in (target, background))
    return float(1 - np.minimum(t, b).sum())


def contrast_ratio_error(
    x: ArrayLike, truth: ArrayLike, target: ArrayLike, background: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Relative error of the contrast, ``|C / C0 - 1|`` with ``C = m_T / m_B`` of x and ``C0`` of the truth.

    Multiplying x by a constant changes nothing. Arguments as for `cnre`.
    """
    contrast = []
    for field in (x, truth):
        (mt, _), (mb, _) = _moments(field, target, background, weights)
        if mb == 0:
            raise ValueError("the mean of the background is zero, so there is no contrast ratio")
        contrast.append(mt / mb)
    return float(abs(contrast[0] / contrast[1] - 1))


def dice(x: ArrayLike, truth: ArrayLike, mask: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, np.ndarray]:
    """Dice coefficient of the lesion that a map shows with the true one, and the mask of what it shows.

    The map is divided at the geometric mean of the true medians inside and outside the lesion, so that the threshold
    does not depend on the reconstruction.

    Parameters
    ----------
    x, truth : array_like, same shape
    mask : array_like of bool, same shape
        The true lesion.
    weights : array_like, same size, optional
        As in `relative_l2`.

    Returns
    -------
    float
        2 |A and B| / (|A| + |B|).
    shown : numpy.ndarray of bool, shape of x
    """
    mask = np.asarray(mask, dtype=bool)
    shown, w = (
        _shown(np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64), mask),
        _weights(weights, mask.shape),
    )
    both = w[(shown & mask).ravel()].sum()
    return float(2 * both / (w[shown.ravel()].sum() + w[mask.ravel()].sum())), shown


def _shown(x, truth, mask):
    inside, outside = np.median(truth[mask]), np.median(truth[~mask])
    threshold = np.sqrt(inside * outside)
    return x > threshold if inside > outside else x < threshold


def position_error(shown: ArrayLike, mask: ArrayLike, geometry: Grid | Mesh) -> float:
    """Distance between the centroids of two masks, over the diameter of the circle (ball) of the second one's size.

    Infinite if the first is empty.
    """
    weights = geometry.node_weights.ravel()
    shown, mask = (np.asarray(one, dtype=bool).ravel() for one in (shown, mask))
    if not shown.any():
        return float("inf")
    a, b = (np.average(geometry.points[one], axis=0, weights=weights[one]) for one in (shown, mask))
    return float(np.linalg.norm(a - b) / lesion_diameter(mask, geometry))


def lesion_diameter(mask: ArrayLike, geometry: Grid | Mesh) -> float:
    """Diameter in metres of the circle (ball) that is as large as a mask."""
    size = float(geometry.node_weights.ravel()[np.ravel(mask)].sum())
    return float(2 * np.sqrt(size / np.pi) if geometry.dim == 2 else np.cbrt(6 * size / np.pi))


def detections(x: ArrayLike, mask: ArrayLike, contrast: float = SUSPICIOUS_CONTRAST) -> tuple[float, int]:
    """Share of the true lesions that a map on a grid shows, and the number of false alarms.

    Suspicious are regions of nodes that hang together (sharing an edge), at least `SMALLEST_LESION` of them, all of
    which are stiffer, or all softer, than the median of the map by a factor. A lesion is found if such regions cover a
    quarter of it (`FOUND_SHARE`); a region that touches no lesion is a false alarm.

    Parameters
    ----------
    x : array_like
        Modulus on a grid, in any unit.
    mask : array_like of bool, same shape
        True lesions, each a connected part; none for tissue without a lesion.
    contrast : float, optional
        Least factor.

    Returns
    -------
    found : float
        NaN without lesions.
    false_alarms : int
    """
    from scipy.ndimage import binary_dilation, label

    x, mask = np.asarray(x, dtype=np.float64), np.asarray(mask, dtype=bool)
    away = np.log(x / np.median(x))
    near, lesions = binary_dilation(mask, iterations=2), label(mask)
    suspicious, alarms = np.zeros(mask.shape, bool), 0
    for regions, number in (label(sign * away > np.log(contrast)) for sign in (1, -1)):
        for k in range(1, number + 1):
            region = regions == k
            if region.sum() >= SMALLEST_LESION:
                suspicious |= region
                alarms += not (region & near).any()
    found = [suspicious[lesions[0] == k].mean() >= FOUND_SHARE for k in range(1, lesions[1] + 1)]
    return float(np.mean(found)) if found else float("nan"), alarms


def region_masks(
    truth: ArrayLike, geometry: Grid | Mesh, mask: ArrayLike | None = None, guard: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of the lesion and of the background, without a guard band along the margin.

    Parameters
    ----------
    truth : array_like, shape geometry.node_shape
        True modulus.
    geometry : Grid or Mesh
    mask : array_like of bool, shape geometry.node_shape, optional
        The lesion. By default it is the smaller of the two classes into which Otsu's threshold (IEEE Trans. SMC 9,
        1979) divides the logarithm of the truth, with nodes weighted by area.
    guard : int, optional
        Number of layers of cells that are removed from both regions along their common margin; fewer if otherwise one
        of the regions would vanish.

    Returns
    -------
    target, background : numpy.ndarray of bool, shape geometry.node_shape

    Raises
    ------
    ValueError
        If the truth is constant or not positive, or a region is empty.
    """
    truth = np.asarray(truth, dtype=np.float64)
    if truth.shape != geometry.node_shape:
        raise ValueError(f"truth must have the geometry's shape {geometry.node_shape}, got {truth.shape}")
    if guard != int(guard) or guard < 0:
        raise ValueError(f"guard must be a whole number, zero or more, got {guard}")
    if mask is None:
        mask = _otsu(truth, geometry.node_weights)
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != geometry.node_shape or mask.all() or not mask.any():
        raise ValueError(
            f"mask must have shape {geometry.node_shape} and mark some nodes, not all; "
            f"got shape {mask.shape} with {int(mask.sum())} marked"
        )
    target, background = mask, ~mask
    for _ in range(int(guard)):
        smaller = _erode(target, geometry), _erode(background, geometry)
        if not (smaller[0].any() and smaller[1].any()):
            break
        target, background = smaller
    return target, background


def evaluate(
    modulus: ArrayLike,
    truth: ArrayLike,
    geometry: Grid | Mesh,
    mask: ArrayLike | None = None,
    guard: int = 2,
    relative: bool = False,
) -> dict[str, float]:
    """All metrics of one reconstruction.

    On a `Mesh` errors are weighted by area, except for the symmetric RMS, which is defined as a mean over nodes.

    Parameters
    ----------
    modulus, truth : array_like, shape geometry.node_shape
        Reconstructed and true modulus in pascals.
    geometry : Grid or Mesh
    mask, guard
        The lesion and its guard band, see `region_masks`.
    relative : bool, optional
        Whether the modulus is known only up to a factor. It is then multiplied first by the factor that fits the truth
        best in the least-squares sense.

    Returns
    -------
    dict of str to float
        relative_l2, rmse (Pa), mae (Pa), symmetric_rms, psnr (dB), ssim, cnre, cnre_db, cnr, gcnr,
        contrast_ratio_error, dice, position_error, found and false_alarms. Metrics that are not defined are NaN: ssim,
        found and false_alarms on a mesh, ssim on a small grid, all metrics that need a lesion or a range if the mask
        is empty or the truth constant, psnr and ssim if scikit-image is not installed.

    Raises
    ------
    ValueError
        If shapes differ or values are not finite and positive.
    """
    refuse_masked(modulus, "modulus")
    refuse_masked(truth, "truth")
    x, truth = (np.asarray(to_host(value), dtype=np.float64) for value in (modulus, truth))
    for name, value in (("modulus", x), ("truth", truth)):
        if value.shape != geometry.node_shape:
            raise ValueError(f"{name} must have the geometry's shape {geometry.node_shape}, got {value.shape}")
    on_grid = isinstance(geometry, Grid)
    weights = None if on_grid else geometry.node_weights
    *_, w = _pair(x, truth, weights)
    if relative:
        x = x * ((w @ (x * truth).ravel()) / (w @ (x * x).ravel()))
    values = {
        "relative_l2": relative_l2(x, truth, weights),
        "rmse": rmse(x, truth, weights),
        "mae": mae(x, truth, weights),
        "symmetric_rms": symmetric_rms(x, truth),
    }
    regions = ("psnr", "ssim", "cnre", "cnre_db", "cnr", "gcnr", "contrast_ratio_error", "dice", "position_error")
    values |= dict.fromkeys((*regions, "found", "false_alarms"), float("nan"))
    constant = np.ptp(truth) == 0
    if on_grid:
        lesion = (
            mask if mask is not None else np.zeros(x.shape, bool) if constant else _otsu(truth, geometry.node_weights)
        )
        values["found"], values["false_alarms"] = detections(x, lesion)
    if constant:
        return values
    with suppress(ImportError):  # scikit-image is an extra
        values["psnr"] = psnr(x, truth)
        if on_grid and min(x.shape) >= SSIM_WINDOW:
            values["ssim"] = ssim(x, truth)
    if mask is not None and not np.any(mask):
        return values
    t, b = region_masks(truth, geometry, mask, guard)
    values["cnre"] = cnre(x, t, b, weights)
    values["cnre_db"] = cnre(x, t, b, weights, decibel=True)
    values["cnr"] = cnr(x, t, b, weights)
    values["gcnr"] = gcnr(x, t, b, weights)
    values["contrast_ratio_error"] = contrast_ratio_error(x, truth, t, b, weights)
    lesion = region_masks(truth, geometry, mask, guard=0)[0]
    values["dice"], shown = dice(x, truth, lesion, weights)
    values["position_error"] = position_error(shown, lesion, geometry)
    return values


def _weights(weights, shape) -> np.ndarray:
    size = int(np.prod(shape))
    if weights is None:
        return np.full(size, 1 / size)
    w = np.asarray(weights, dtype=np.float64).ravel()
    if w.size != size or not np.isfinite(w).all() or w.min() < 0 or w.sum() == 0:
        raise ValueError(f"weights must be {size} finite numbers, none negative, got {w.size}")
    return w / w.sum()


def _pair(x, truth, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, truth = np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.shape != truth.shape or x.size == 0:
        raise ValueError(f"x and truth must have the same shape, got {x.shape} and {truth.shape}")
    for name, value in (("x", x), ("truth", truth)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite")
    return x.ravel(), truth.ravel(), _weights(weights, x.shape)


def _range(truth, data_range) -> float:
    value = float(np.ptp(truth)) if data_range is None else float(data_range)
    if not (np.isfinite(value) and value > 0):
        what = "the truth is constant, so data_range must be given" if data_range is None else f"got {data_range}"
        raise ValueError(f"data_range must be positive and finite: {what}")
    return value


def _regions(x, target, background, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x = np.asarray(x, dtype=np.float64)
    masks = np.asarray(target, dtype=bool), np.asarray(background, dtype=bool)
    for name, mask in zip(("target", "background"), masks, strict=True):
        if mask.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {x.shape}, got {mask.shape}")
        if not mask.any():
            raise ValueError(f"{name} is empty")
        if not np.isfinite(x[mask]).all():
            raise ValueError("x must be finite")
    if (masks[0] & masks[1]).any():
        raise ValueError("target and background overlap")
    return x.ravel(), _weights(weights, x.shape), masks[0].ravel(), masks[1].ravel()


def _moments(x, target, background, weights) -> list[tuple[float, float]]:
    x, w, *masks = _regions(x, target, background, weights)
    moments = []
    for mask in masks:
        v, share = x[mask], w[mask] / w[mask].sum()
        mean = share @ v
        moments.append((mean, share @ (v - mean) ** 2))
    return moments


def _otsu(truth, weights) -> np.ndarray:
    """The smaller of the two classes of log(truth) for which the variance between the classes is greatest."""
    if not (np.isfinite(truth).all() and truth.min() > 0):
        raise ValueError("truth must be positive and finite (pascals)")
    levels, number = np.unique(np.log(truth), return_inverse=True)
    if len(levels) == 1:
        raise ValueError("truth is constant: it has no lesion")
    share = np.bincount(number.ravel(), weights) / weights.sum()
    below = np.cumsum(share)[:-1]
    moment = np.cumsum(share * levels)
    between = (moment[-1] * below - moment[:-1]) ** 2 / (below * (1 - below))
    split = int(np.argmax(between))
    upper = (number > split).reshape(truth.shape)
    return upper if below[split] >= 0.5 else ~upper


def _erode(mask, geometry) -> np.ndarray:
    """Nodes of the mask all of whose neighbours, the nodes that share a cell with them, lie in the mask."""
    if isinstance(geometry, Grid):
        from scipy.ndimage import binary_erosion

        return binary_erosion(mask, np.ones((3,) * mask.ndim), border_value=1)
    kept = mask.copy()
    kept[geometry.cells[~mask[geometry.cells].all(axis=1)]] = False
    return kept
