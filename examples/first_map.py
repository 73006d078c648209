"""A first map: a compressed body with a known pressure on its top.

The measurement is simulated here. With data of your own, the displacement and its standard deviation take the place of
the simulation, and everything below it stays.
"""

import elastofast as ef

grid = ef.Grid(shape=(96, 96), spacing=(4e-4, 4e-4))  # nodes, and metres between them; axis 0 is depth
law = ef.PlaneStress(poisson=0.495)
load = ef.compression(grid, pressure=100.0)  # pascals on the top; the bottom rests on a plate, the sides are free

truth, mask = ef.lesion(grid, seed=1)  # pascals
simulated = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)
u, std = simulated.displacement, simulated.displacement_std  # metres, shape (2, 96, 96): axial, lateral

m = ef.Measurement(grid, law, load, u, displacement_std=std, reference=truth)
result = ef.reconstruct(m, prior="tv")

print(result.status, result.message)
print(f"chi2 {result.chi2:.2f}, {result.seconds:.1f} s")
print(f"relative error {ef.metrics.evaluate(result.modulus, truth, grid, mask=mask)['relative_l2']:.3f}")
ef.plot_result(result, m, "first_map.png")
