"""An unknown Poisson ratio: estimated together with the map, with its interval.

The body has a Poisson ratio of 0.46; the measurement states 0.495, which is not true.
"""

import elastofast as ef

grid = ef.Grid(shape=(48, 48), spacing=(8e-4, 8e-4))
load = ef.compression(grid, pressure=100.0)
truth, mask = ef.lesion(grid, seed=3, kind="oval", size=(0.2, 0.3))
simulated = ef.simulate(grid, ef.PlaneStress(poisson=0.46), load, truth, snr=35.0, seed=0)
u, std = simulated.displacement, simulated.displacement_std

m = ef.Measurement(grid, ef.PlaneStress(poisson=0.495), load, u, displacement_std=std, reference=truth)
result = ef.reconstruct(m, prior="tv", poisson="estimate")
low, high = result.poisson_interval
print(f"Poisson ratio {result.poisson:.4f}, 95 % interval {low:.4f} to {high:.4f}; the truth is 0.46")
print(result.status, result.message)

wrong = ef.reconstruct(m, prior="tv")
for name, one in (("estimated", result), ("0.495", wrong)):
    error = ef.metrics.evaluate(one.modulus, truth, grid, mask=mask)["relative_l2"]
    print(f"Poisson ratio {name:<10} relative error {error:.3f}, chi2 {one.chi2:.2f}")
ef.plot_maps(
    {"truth": truth, "estimated ratio": result.modulus, "ratio 0.495": wrong.modulus}, grid, "unknown_poisson.png"
)
