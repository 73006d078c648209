"""DeepInverse and elastofast: the data term in DeepInverse's optimiser, and DeepInverse's denoiser in `reconstruct`.

Both runs use DeepInverse's total variation denoiser, which needs no training. Any denoiser of ``deepinv.models`` can
take its place; one with random weights is warned about. Needs deepinv.
"""

import deepinv
import numpy as np
import torch

import elastofast as ef
from elastofast.interop.deepinv import DenoiserPrior, Misfit, TargetDenoiser


def main(nodes=48, iterations=40, weight=300.0):
    """Reconstruct both ways and return the errors: root mean square of log x."""
    grid = ef.Grid(shape=(nodes, nodes), spacing=(32e-3 / (nodes - 1),) * 2)
    law, load = ef.PlaneStress(poisson=0.495), ef.compression(grid, pressure=100.0)
    truth, _ = ef.lesion(grid, seed=1, size=(0.3, 0.4))
    m = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)
    prior = DenoiserPrior(deepinv.models.TVDenoiser(n_it_max=200), sigma=0.02)

    # DeepInverse's half-quadratic splitting of z = log x, a map (1, 1, H, W)
    model = deepinv.optim.HQS(
        Misfit(m), deepinv.optim.PnP(TargetDenoiser(prior)), stepsize=1 / weight, max_iter=iterations, g_first=True
    )
    start = torch.full((1, 1, *grid.shape), np.log(12.5e3), dtype=torch.float64)
    z = model(torch.tensor(m.displacement)[None], None, init=start)

    result = ef.reconstruct(m, prior=prior, weight=weight)
    return {
        "DeepInverse's splitting": error(z[0, 0].exp().numpy(), truth),
        "elastofast's splitting": error(result.modulus, truth),
    }


def error(x, truth):
    """Root mean square of the error of log x."""
    return float(np.sqrt(np.mean((np.log(x) - np.log(truth)) ** 2)))


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.3f}")
