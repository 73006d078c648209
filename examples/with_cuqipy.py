"""Samples of the modulus given a measurement, by CUQIpy's NUTS.

The prior is a Gaussian Markov random field for z = log x. Moduli that cannot be solved, which NUTS tries while it looks
for its step length, have the likelihood zero. Needs CUQIpy 1.5 or later.
"""

import cuqi
import numpy as np

import elastofast as ef
from elastofast.interop.cuqipy import likelihood


def main(nodes=24, samples=100, max_depth=6):
    """Sample the posterior; errors of log x of the prior's mean and of the posterior's, and the standard deviation."""
    grid = ef.Grid(shape=(nodes, nodes), spacing=(32e-3 / (nodes - 1),) * 2)
    law, load = ef.PlaneStress(poisson=0.495), ef.compression(grid, pressure=100.0)
    truth, _ = ef.lesion(grid, seed=1, size=(0.3, 0.4))
    m = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)

    np.random.seed(0)  # noqa: NPY002 (CUQIpy draws from NumPy's global generator)
    mean = np.full(grid.n_nodes, np.log(12.5e3))
    z = cuqi.distribution.GMRF(mean, 20.0, geometry=cuqi.geometry.Image2D(grid.shape))
    sampler = cuqi.sampler.NUTS(cuqi.distribution.Posterior(likelihood(m), z), initial_point=mean, max_depth=max_depth)
    drawn = sampler.warmup(samples).sample(samples).get_samples().samples[:, samples:]

    def error(z):
        return float(np.sqrt(np.mean((z - np.log(truth).ravel()) ** 2)))

    return error(mean), error(drawn.mean(axis=1)), float(drawn.std(axis=1).mean())


if __name__ == "__main__":
    before, after, spread = main()
    print(f"error of log x: {before:.3f} before, {after:.3f} after; mean standard deviation {spread:.3f}")
