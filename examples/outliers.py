"""Outliers: displacements of windows that hopped to a wrong peak are found, left out and reported."""

import numpy as np

import elastofast as ef

grid = ef.Grid(shape=(65, 65), spacing=(6e-4, 6e-4))
law = ef.PlaneStress(poisson=0.495)
load = ef.compression(grid, pressure=100.0)
truth, mask = ef.lesion(grid, seed=3, kind="oval", size=(0.2, 0.3))
simulated = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)

rng = np.random.default_rng(1)
u, std = simulated.displacement.copy(), simulated.displacement_std
wrong = (rng.random(u.shape) < 0.02) & ~load.fixed  # one in fifty is wrong by thirty standard deviations
u[wrong] += 30 * std[wrong] * rng.choice([-1, 1], size=wrong.sum())

m = ef.Measurement(grid, law, load, u, displacement_std=std, reference=truth)
result = ef.reconstruct(m, prior="tv")  # noise="gaussian" would keep all of them

found, mistaken = result.rejected & wrong, result.rejected & ~wrong
print(f"{found.sum()} of {wrong.sum()} outliers found, {mistaken.sum()} other displacements left out")
print(result.status, result.message)
print(f"relative error {ef.metrics.evaluate(result.modulus, truth, grid, mask=mask)['relative_l2']:.3f}")
ef.plot_result(result, m, "outliers.png")
