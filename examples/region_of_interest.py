"""A region of interest that is cut out of a scan, without knowledge of the forces or the motion of its edges.

All dofs on the edges are marked open: their force is unknown, and their displacement has only been measured. Since no
force is known, the modulus is determined only up to one common factor.
"""

import numpy as np

import elastofast as ef

# a simulated scan of the whole body
body = ef.Grid(shape=(96, 96), spacing=(4e-4, 4e-4))
law = ef.PlaneStress(poisson=0.495)
truth, _ = ef.lesion(body, seed=3, kind="oval", size=(0.2, 0.3))
scan = ef.simulate(body, law, ef.compression(body, pressure=100.0), truth, snr=35.0)

# the region of interest, with open edges
inside = np.s_[24:80, 20:76]
grid = ef.Grid(shape=(56, 56), spacing=body.spacing)
edges = np.ones((2, *grid.shape), bool)
edges[:, 1:-1, 1:-1] = False
m = ef.Measurement(
    grid,
    law,
    ef.Boundary(open=edges),
    displacement=scan.displacement[:, *inside],
    displacement_std=scan.displacement_std[:, *inside],
    reference=truth[inside],
)

result = ef.reconstruct(m, prior="tv")
print(result.status, result.message)
print(f"relative modulus: {result.relative}")
# relative=True multiplies the map by the factor that fits the truth best, before the errors are computed
for name, value in ef.metrics.evaluate(result.modulus, truth[inside], grid, relative=True).items():
    print(f"{name:<22}{value:.4g}")
ef.plot_result(result, m, "region_of_interest.png")
