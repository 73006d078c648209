"""PyLops and pyproximal: a direct inversion, and ADMM with the data term and total variation.

The direct inversion takes the measured displacement u for the true one and solves D(u) x = f, which is linear in the
modulus x, with a smoothness penalty of PyLops. Noise in u biases it. ADMM minimises the data term itself, which allows
for the noise, plus pyproximal's total variation of log x. Needs pylops and pyproximal.
"""

import numpy as np
import pylops
import pyproximal
from pyproximal.optimization.primal import ADMM

import elastofast as ef
from elastofast.interop.pylops import contraction
from elastofast.interop.pyproximal import Misfit


def main(nodes=48, iterations=30):
    """Reconstruct by both methods and return their errors: root mean square of log x."""
    grid = ef.Grid(shape=(nodes, nodes), spacing=(32e-3 / (nodes - 1),) * 2)
    law, load = ef.PlaneStress(poisson=0.495), ef.compression(grid, pressure=100.0)
    truth, _ = ef.lesion(grid, seed=1, size=(0.3, 0.4))
    m = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)
    errors = {}

    equilibrium = pylops.MatrixMult(np.diag(load.loaded.ravel().astype(float))) @ contraction(m.form, m.displacement)
    smooth = [pylops.Laplacian(grid.shape)]
    scale = np.abs(equilibrium @ np.ones(grid.n_nodes)).max()
    x = pylops.optimization.leastsquares.regularized_inversion(
        equilibrium, load.force.ravel(), smooth, epsRs=[0.1 * scale], iter_lim=500
    )[0]
    errors["direct inversion"] = error(np.maximum(x, 1e2), truth)

    start = np.full(grid.n_nodes, np.log(12.5e3))
    z, _ = ADMM(Misfit(m), pyproximal.TV(grid.shape, sigma=5.0), start, tau=0.01, niter=iterations)
    errors["ADMM with total variation"] = error(np.exp(z), truth)
    return errors


def error(x, truth):
    """Root mean square of the error of log x."""
    return float(np.sqrt(np.mean((np.log(x) - np.log(truth).ravel()) ** 2)))


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.3f}")
