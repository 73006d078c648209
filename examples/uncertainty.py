"""How sure the map is: what the measurement determines, the error at each node, and the interval of a contrast."""

import elastofast as ef

grid = ef.Grid(shape=(48, 48), spacing=(8e-4, 8e-4))
law = ef.PlaneStress(poisson=0.495)
load = ef.compression(grid, pressure=100.0)
truth, mask = ef.lesion(grid, seed=3, kind="oval", size=(0.2, 0.3))
m = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)

print(ef.diagnose(m))  # before anything is reconstructed

result = ef.reconstruct(m, prior="tv")
result.uncertainty = ef.uncertainty(result, m)

lesion, background = ef.metrics.region_masks(truth, grid, mask)  # or masks that you have drawn on the map
low, estimate, high = result.uncertainty.contrast(lesion, background, level=0.9)
true = truth[lesion].mean() / truth[background].mean()
print(f"contrast {estimate:.2f}, 90 % interval {low:.2f} to {high:.2f}; the truth is {true:.2f}")
low, estimate, high = result.uncertainty.mean(lesion)
print(f"mean modulus of the lesion {estimate:.3g} Pa, 90 % interval {low:.3g} to {high:.3g} Pa")
ef.plot_result(result, m, "uncertainty.png")
