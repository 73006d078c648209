"""A mesh of triangles: a disc between two plates that approach each other by a known amount.

Meshes come from `ef.Mesh.read`, which reads every format that meshio knows, or from arrays of points and cells as here.
The last coordinate of a mesh is the axial one.
"""

import numpy as np
from scipy.spatial import Delaunay

import elastofast as ef

# points on rings, in metres, and the triangles between them
radii = np.linspace(0, 15e-3, 20)[1:]
rings = [radius * np.exp(2j * np.pi * np.arange(6 * k) / (6 * k)) for k, radius in enumerate(radii, start=1)]
points = np.concatenate([[0j], *rings])
points = np.stack([points.real, points.imag], axis=1)
mesh = ef.Mesh(points, Delaunay(points).simplices)
law = ef.PlaneStress(poisson=0.495)

# the ends of the disc are pressed together by 0.6 mm; one node at the bottom is also held laterally
top, bottom = points[:, 1] > 14.5e-3, points[:, 1] < -14.5e-3
fixed, known = np.zeros((2, mesh.n_nodes), bool), np.zeros((2, mesh.n_nodes))
fixed[1] = top | bottom
fixed[0, np.argmin(points[:, 1])] = True
known[1, top] = -6e-4
load = ef.Boundary(fixed=fixed, displacement=known)

truth, _ = ef.inclusion(mesh, (4e-3, 0.0), 4e-3, modulus=40e3, background=10e3)
m = ef.simulate(mesh, law, load, truth, snr=40.0, seed=0)
result = ef.reconstruct(m, prior="tv")

print(result.status, result.message)
print(f"relative modulus: {result.relative}")  # no force is known, so that only ratios of moduli are determined
error = ef.metrics.evaluate(result.modulus, truth, mesh, relative=True)["relative_l2"]
print(f"{mesh.n_nodes} nodes, relative error {error:.3f}")
ef.plot_result(result, m, "mesh.png")
