"""The operators in SciPy's own methods: conjugate gradients, eigenvalues, least squares and L-BFGS."""

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import cg, eigsh, lsqr

import elastofast as ef

grid = ef.Grid(shape=(32, 32), spacing=(1e-3, 1e-3))
law = ef.PlaneStress(poisson=0.495)
load = ef.compression(grid, pressure=100.0)
truth, _ = ef.lesion(grid, seed=3, kind="oval", size=(0.3, 0.4))
form = ef.ElasticForm(grid, law)

# a forward solve by conjugate gradients: K(x) on the loaded dofs
stiffness = form.stiffness_operator(truth, load.loaded)
u = np.zeros(form.dof_shape)
u[load.loaded], failed = cg(stiffness, load.force[load.loaded], rtol=1e-10, maxiter=5000)
reference = ef.solve_forward(form, truth, load)
print(f"cg: failed {failed}, difference from solve_forward {np.abs(u - reference).max() / np.abs(reference).max():.1e}")
print(f"largest eigenvalues of K: {eigsh(stiffness, k=2, which='LA', return_eigenvectors=False)}")

# without noise, the modulus follows from D(u) x = f by least squares; the unit of u makes the numbers of order one
unit = 1e-4
scaled = form.contraction_operator(u / unit)
moduli = lsqr(scaled, form.force(truth, u).ravel() / unit, atol=1e-12, btol=1e-12, iter_lim=4000)[0]
print(f"lsqr: relative error {np.linalg.norm(moduli - truth.ravel()) / np.linalg.norm(truth):.1e}")

# with noise, the data term and its gradient in an optimiser of your own choice, over z = log x
m = ef.simulate(grid, law, load, truth, snr=35.0, seed=0)
fidelity = ef.Fidelity(m, on_failure="inf")  # a modulus that cannot be solved has an infinite misfit


def objective(z):
    """Data term and a quadratic penalty on differences of z, with the gradient."""
    z = z.reshape(grid.shape)
    x = np.exp(z)
    value, gradient = fidelity(x)
    slope = x * gradient
    for axis in (0, 1):
        difference = np.diff(z, axis=axis)
        value += 10.0 * (difference**2).sum()
        ends = np.pad(difference, [(1, 1) if a == axis else (0, 0) for a in (0, 1)])
        slope -= 20.0 * np.diff(ends, axis=axis)
    return value, slope.ravel()


found = minimize(objective, np.full(truth.size, np.log(12.5e3)), jac=True, method="L-BFGS-B", options={"maxiter": 200})
x = np.exp(found.x).reshape(grid.shape)
print(f"L-BFGS: {found.nit} iterations, relative error {np.linalg.norm(x - truth) / np.linalg.norm(truth):.3f}")
ef.plot_maps({"truth": truth, "minimum by scipy.optimize": x}, grid, "scipy_operators.png")
