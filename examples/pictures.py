"""Pictures of a reconstruction, in axes of your own, and a report that is one file.

A gel pad of known stiffness lies on the tissue; the figures hatch it. The panels are functions that take and return
axes of matplotlib, so that they can be put together with others.
"""

import matplotlib.pyplot as plt
import numpy as np

import elastofast as ef

grid = ef.Grid((48, 48), (0.8e-3, 0.8e-3))
truth, lesion = ef.lesion(grid, seed=3, kind="random", size=(0.25, 0.35))
truth[:8] = 20e3  # the pad, pascals
known = np.full(grid.shape, np.nan)
known[:8] = 20e3
m = ef.simulate(grid, ef.PlaneStress(0.45), ef.compression(grid, pressure=100.0), truth, snr=35.0, seed=0)
result = ef.reconstruct(m, prior="tv", known=known)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
ef.plots.draw_modulus(result.modulus, grid, left, contour=lesion, known=result.known)
ef.plots.draw_misfit(result, m, middle, component="axial")
ef.plots.draw_profile({"truth": truth, "reconstruction": result.modulus}, grid, right).legend()
figure.savefig("pictures.png", dpi=150)

ef.plot_result(result, m, "pictures_result.png", contour=True)
ef.plot_displacement(result, m, "pictures_displacement.png")
ef.write_report("report.html", result, m, title="Phantom with a gel pad", settings={"prior": "tv", "known": "pad"})
