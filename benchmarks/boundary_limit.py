"""How much of a lesion's boundary the data determine: ``python benchmarks/boundary_limit.py maps.h5``.

Take a map of two moduli as known but for the nodes within one spacing of the boundary, each of which may have either.
With the data term's Gauss-Newton curvature H between these nodes and a prior variance of 1/4 (in units of the step
between the moduli; the value of a fair coin), the posterior covariance is (H + 4)^-1, and its trace the least mean
square error of a linear estimate that knows nothing of the shape of boundaries. Beside it the error that
reconstructions have at the same nodes. All errors are relative to the norm of the whole map, as in the tables.
"""

import argparse

import numpy as np
from scipy.ndimage import distance_transform_edt
from side_by_side import print_table, save

import elastofast as ef
from elastofast.learning.dataset import Dataset
from elastofast.misfit.curvature import DataCurvature
from elastofast.misfit.fidelity import Fidelity

RTOL = 1e-6


def main():
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="data set by elastofast dataset; its validation maps are used")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--priors", nargs="*", default=["tv", "critic"])
    options = parser.parse_args()
    with Dataset.open(options.data) as data:
        indices = data.indices("validation")[: options.count]
        rows = [limit(data.modulus(i), data.mask(i), data.measurement(i), options.priors) for i in indices]
    names = [*rows[0]]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in names}
    print_table(["map", *names], [[str(i), *row.values()] for i, row in zip(indices, rows, strict=True)])
    print_table(["mean", *names], [["", *mean.values()]])
    save("boundary_limit", {"maps": rows, "mean": mean})


def limit(modulus, mask, measurement, priors):
    """One map: what the data say of its boundary, and what reconstructions make of it."""
    modulus = modulus.astype(float)
    inside, outside = np.median(modulus[mask]), np.median(modulus[~mask])
    depth = np.where(mask, distance_transform_edt(mask), -distance_transform_edt(~mask))
    band = np.flatnonzero(np.abs(depth.ravel()) <= 1)
    curvature = band_curvature(measurement, modulus, band, inside, outside)
    norm = np.linalg.norm(modulus) / (inside - outside)
    expected = np.sqrt(np.trace(np.linalg.inv(curvature + 4 * np.eye(len(band))))) / norm
    row = {
        "nodes": len(band),
        "directions": int((np.linalg.eigvalsh(curvature) > 4).sum()),  # in which the data outweigh the coin
        "nothing known": 0.5 * np.sqrt(len(band)) / norm,
        "linear limit": expected,
    }
    for prior in priors:
        error = ef.reconstruct(measurement, prior=prior).modulus - modulus
        row[f"{prior}, boundary"] = np.linalg.norm(error.ravel()[band]) / np.linalg.norm(modulus)
        row[f"{prior}, elsewhere"] = np.linalg.norm(np.delete(error.ravel(), band)) / np.linalg.norm(modulus)
    return row


def band_curvature(measurement, modulus, band, inside, outside):
    """H between the nodes of the band, each measured in steps between the two moduli, at values half way."""
    x = modulus.ravel().copy()
    x[band] = (inside + outside) / 2
    fidelity = Fidelity(measurement, rtol=RTOL)
    apply = DataCurvature(fidelity, x, fidelity.evaluate(x, RTOL))
    step = (inside - outside) / x[band]  # of log x
    columns = np.empty((len(band), len(band)))
    for column, node, size in zip(columns, band, step, strict=True):
        unit = np.zeros_like(x)
        unit[node] = size
        column[...] = step * apply(unit)[band]
    return (columns + columns.T) / 2


if __name__ == "__main__":
    main()
