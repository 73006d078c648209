"""Several loads of one body: one map that explains a compression and a shear, and a gel pad of known stiffness.

Each load sees other parts and directions of the tissue, so that their displacements cannot be averaged. A joint
reconstruction gives one map for all of them.
"""

import numpy as np

import elastofast as ef

grid = ef.Grid(shape=(48, 48), spacing=(8e-4, 8e-4))
law = ef.PlaneStress(poisson=0.495)
truth, mask = ef.lesion(grid, seed=3, kind="oval", size=(0.2, 0.3))
truth[:5] = 20e3  # a gel pad between probe and tissue, whose modulus is known

pressed = ef.simulate(grid, law, ef.compression(grid, strain=0.01), truth, snr=20.0, seed=0)

# shear: the bottom is held, the top is moved sideways
fixed, moved = np.zeros((2, *grid.shape), bool), np.zeros((2, *grid.shape))
fixed[:, [0, -1]] = True
moved[1, 0] = 3e-4  # metres
sheared = ef.simulate(grid, law, ef.Boundary(fixed=fixed, displacement=moved), truth, snr=20.0, seed=1)

pad = np.full(grid.shape, np.nan)  # NaN: sought
pad[:5] = 20e3  # pascals

result = ef.reconstruct([pressed, sheared], joint=True, known=pad, prior="tv")
print(result.status, result.message)
print(f"chi2 of the frames: {np.round(result.frame_chi2, 2)}")

maps = {"compression": pressed, "shear": sheared}
maps = {name: ef.reconstruct(m, known=pad, prior="tv").modulus for name, m in maps.items()}
maps["joint"] = result.modulus
for name, modulus in maps.items():
    error = ef.metrics.evaluate(modulus, truth, grid, mask=mask)["relative_l2"]
    print(f"{name:<12} relative error {error:.3f}")
ef.plot_maps({"truth": truth, **maps}, grid, "frames.png", depth=17e-3)
