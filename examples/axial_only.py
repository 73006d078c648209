"""Axial displacement only, with holes: what was not measured is marked by an infinite standard deviation.

Ultrasound measures the motion along its beams well and that across them badly or not at all, and shadows leave holes.
The equilibrium of the body fills in both: nothing has to be interpolated.
"""

import numpy as np

import elastofast as ef

grid = ef.Grid(shape=(72, 72), spacing=(5e-4, 5e-4))
law = ef.PlaneStress(poisson=0.495)
load = ef.compression(grid, pressure=100.0)
truth, mask = ef.lesion(grid, seed=3, kind="lobulated", size=(0.2, 0.3))
simulated = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)

axial = simulated.displacement[0].copy()  # metres
axial[15:22, 45:60] = np.nan  # a shadow
axial[np.random.default_rng(0).random(axial.shape) < 0.05] = np.nan  # windows that could not be tracked

displacement = np.stack([axial, np.full_like(axial, np.nan)])  # the lateral component was not measured
std = np.where(np.isnan(displacement), np.inf, simulated.displacement_std)  # metres

m = ef.Measurement(grid, law, load, displacement, displacement_std=std, reference=truth)
result = ef.reconstruct(m, prior="tv")

print(result.status, result.message)
print(f"relative error {ef.metrics.evaluate(result.modulus, truth, grid, mask=mask)['relative_l2']:.3f}")
ef.plot_result(result, m, "axial_only.png")
