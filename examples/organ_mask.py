"""An organ in an image: only the pixels inside of a mask belong to the body.

Outside of the mask there is other tissue, or none, of which nothing is known. The rim of the organ and everything
outside are therefore open: neither the force nor, outside, the displacement is known there.
"""

import numpy as np
from scipy.ndimage import binary_erosion

import elastofast as ef

# a scan of a body that contains the organ
body = ef.Grid(shape=(72, 72), spacing=(5e-4, 5e-4))
law = ef.PlaneStress(poisson=0.495)
truth, _ = ef.inclusion(body, (18e-3, 20e-3), 4e-3, modulus=40e3, background=10e3)
scan = ef.simulate(body, law, ef.compression(body, pressure=100.0), truth, snr=40.0, seed=0)
depth, lateral = body.points.T.reshape(2, *body.shape)
organ = (depth - 18e-3) ** 2 + (lateral - 18e-3) ** 2 < 12e-3**2

# the part of the image around the organ; what is outside of the mask was not measured
rows, columns = (np.flatnonzero(organ.any(axis=axis)) for axis in (1, 0))
part = np.s_[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]
organ, u = organ[part], scan.displacement[:, *part]
std = np.where(organ, scan.displacement_std[:, *part], np.inf)
grid = ef.Grid(shape=organ.shape, spacing=body.spacing)

inner = binary_erosion(organ)
m = ef.Measurement(
    grid, law, ef.Boundary(open=np.stack([~inner, ~inner])), np.where(organ, u, np.nan), displacement_std=std
)
result = ef.reconstruct(m, prior="tv")

print(result.status, result.message)
modulus = np.where(organ, result.modulus, np.nan)  # outside of the organ, the map means nothing
away = np.hypot(depth[part] - 18e-3, lateral[part] - 20e-3)
background = np.nanmean(modulus[away > 6e-3])
print(f"contrast {modulus[away < 3e-3].mean() / background:.2f}, the truth is 4")
# no force is known, so that the map has no scale of its own: for the picture, the background is taken for 10 kPa
maps = {"truth": np.where(organ, truth[part], np.nan), "map": modulus * 10e3 / background}
ef.plot_maps(maps, grid, "organ_mask.png")
