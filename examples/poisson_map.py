"""A known map of the Poisson ratio: a gel pad of another ratio lies on the tissue.

The pad has a Poisson ratio of 0.45, the tissue one of 0.495.
"""

import numpy as np

import elastofast as ef

grid = ef.Grid(shape=(48, 48), spacing=(8e-4, 8e-4))
load = ef.compression(grid, pressure=100.0)
truth, mask = ef.lesion(grid, seed=3, kind="oval", size=(0.2, 0.3))
nu = np.full(grid.shape, 0.495)
nu[:10] = 0.45  # the pad
law = ef.PlaneStrain(poisson=nu)
u = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)

m = ef.Measurement(grid, law, load, u.displacement, displacement_std=u.displacement_std, reference=truth)
result = ef.reconstruct(m, prior="tv")
one = ef.reconstruct(m.derived(law=ef.PlaneStrain(poisson=0.495)), prior="tv", max_iterations=30)
for name, found in (("map", result), ("0.495", one)):
    error = ef.metrics.evaluate(found.modulus, truth, grid, mask=mask)["relative_l2"]
    print(f"Poisson ratio {name:<6} relative error {error:.3f}, chi2 {found.chi2:.2f}")
ef.plot_maps({"truth": truth, "map of the ratio": result.modulus, "one ratio": one.modulus}, grid, "poisson_map.png")
