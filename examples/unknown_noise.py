"""Unknown noise: its standard deviation and correlation are estimated from what no modulus explains."""

import warnings

import numpy as np

import elastofast as ef

grid = ef.Grid(shape=(65, 65), spacing=(6e-4, 6e-4))
law = ef.PlaneStress(poisson=0.495)
load = ef.compression(grid, pressure=100.0)
truth, mask = ef.lesion(grid, seed=3, kind="oval", size=(0.2, 0.3))
simulated = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)
u = simulated.displacement

m = ef.Measurement(grid, law, load, u, reference=truth)  # displacement_std is left out
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the warning tells the estimate, which is printed below
    result = ef.reconstruct(m, prior="tv")

print(f"estimated: {result.noise}")
print(f"true standard deviations: {np.median(simulated.displacement_std, axis=(1, 2))} m")
print(result.status, result.message)
print(f"relative error {ef.metrics.evaluate(result.modulus, truth, grid, mask=mask)['relative_l2']:.3f}")
ef.plot_result(result, m, "unknown_noise.png")
