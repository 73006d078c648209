"""A whole job against a plain script: ``OMP_NUM_THREADS=1 python benchmarks/race.py``.

The script is the published method (Mohammadi, Doyley, Cetin) as one would write it with NumPy, SciPy and torch from the
paper's equations: element matrices, sparse assembly, SuperLU for the solves with K, projected gradient descent with
Gamma frozen for 100 steps (equations 6 and 7), the prior by autograd. The prior is total variation, so that both sides
can minimise the same objective J(x) + weight R(x), which judges all of them; the script is also run with the exact
gradient under SciPy's L-BFGS-B, the best that it can be without our solvers. Two set-ups: a grid in plane stress with
white noise, and the authors' protocol (triangles, plane strain, noise that is relative to the displacement).

Times are process times of one run each: minutes for the default sizes.
"""

import argparse
import time

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
from scipy.optimize import minimize
from side_by_side import mesh_problem, print_table, save

import elastofast as ef
from elastofast.priors.variation import TotalVariation

STEPS, UPDATES, STEP = 100, 5, 0.7  # of the descent: steps between updates of Gamma, updates, step over 2 / L
EVALUATIONS = 150  # of J by L-BFGS-B
SMOOTHING = 1e-2  # change of log x over a cell below which the prior is quadratic; that of our total variation
CLOSE = 1e-4  # relative difference of two objectives that count as equal
SNR = 35.0


def main():
    """Run both set-ups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="nodes a side")
    options = parser.parse_args()
    tables = {"race": [row for n in options.sizes for setup in (on_grid, by_protocol) for row in race(setup, n)]}
    print_table([*tables["race"][0]], [[*row.values()] for row in tables["race"]])
    save("race", tables)


def on_grid(n):
    """A lesion in a 40 mm square under 100 Pa, plane stress, white noise."""
    grid = ef.Grid((n, n), (40e-3 / (n - 1),) * 2)
    truth, _ = ef.lesion(grid, seed=1, kind="random", size=(0.2, 0.3))
    load = ef.compression(grid, pressure=100.0)
    return ef.simulate(grid, ef.PlaneStress(0.495), load, truth, snr=SNR, seed=1)


def by_protocol(n):
    """The same by the protocol of the authors: triangles, plane strain, and noise relative to the displacement."""
    own = mesh_problem(n)[0].geometry
    mesh = ef.Mesh(own.points, own.cells, mean_dilatation=False)  # their code has no cure for locking
    truth, _ = ef.inclusion(mesh, center=(20e-3, 20e-3), radius=8e-3, modulus=50e3, background=12.5e3)
    load = ef.compression(mesh, pressure=100.0)
    return ef.simulate(mesh, ef.PlaneStrain(0.495), load, truth, snr=SNR, noise="relative", seed=1)


def race(setup, n):
    """All contestants on one measurement."""
    m = setup(n)
    weight = ef.reconstruct(m, prior="tv").weight  # the same for all, and free
    script = Script(m, weight)
    script.check()
    start = np.full(m.geometry.n_nodes, float(np.exp(np.log(m.reference).mean())))
    own = Track()
    runs = {
        "published, plain script": lambda track: script.descend(start, track),
        "published, elastofast": lambda track: ours(m, weight, track, start, optimizer="descent", gradient="frozen"),
        "exact gradient, plain script, L-BFGS-B": lambda track: script.lbfgs(start, track),
        "elastofast": lambda track: ours(m, weight, track, None),
    }
    finals, seconds = {}, {}
    for name, run in runs.items():
        track = own if name == "elastofast" else Track()
        finals[name] = np.ravel(run(track))
        seconds[name] = track.seconds()
    values = {name: script.objective(x) for name, x in finals.items()}
    for name, x in finals.items():
        ours_at = own.first_below(values[name])
        yield {
            "set-up": setup.__name__.replace("_", " "),
            "nodes": f"{n} x {n}",
            "method": name,
            "seconds": seconds[name],
            "objective": values[name],
            "error": ef.metrics.relative_l2(x.reshape(m.geometry.node_shape), m.reference),
            "elastofast is there after": ours_at,
            "ratio": seconds[name] / ours_at,
        }


class Track:
    """Process time of a run, and the objectives that it passes."""

    def __init__(self):
        self.begin, self.end, self.objectives = 0.0, 0.0, []

    def stop(self):
        """The end of what counts."""
        self.end = time.process_time()

    def seconds(self):
        """From the start to the end."""
        return self.end - self.begin

    def first_below(self, value):
        """Seconds to the first map whose objective is as small as a value; of the whole run if none is."""
        return next((at for at, objective in self.objectives if objective <= value * (1 + CLOSE)), self.seconds())


def ours(m, weight, track, start, **options):
    """One of our reconstructions."""
    start = None if start is None else start.reshape(m.geometry.node_shape)
    track.begin = time.process_time()

    def step(entry):
        if tuple(entry["shape"]) == tuple(m.geometry.node_shape):  # objectives of coarser levels are other ones
            track.objectives.append((time.process_time() - track.begin, entry["objective"]))

    result = ef.reconstruct(m, prior="tv", weight=weight, start=start, progress=step, **options)
    track.stop()
    return result.modulus


class Script:
    """The plain script: everything it needs is made here from the paper's equations."""

    def __init__(self, m, weight):
        self.m, self.weight = m, weight
        points, cells = m.geometry.points, self.cells(m.geometry)
        self.nodes, n = cells, len(points)
        self.dofs = np.hstack([cells, cells + n])
        self.psi = element_matrices(points[cells], m.law)
        self.free = np.flatnonzero(m.load.loaded.ravel())
        self.f, self.u = m.load.force.ravel()[self.free], m.displacement.ravel()
        self.precision = 1 / m.displacement_std.ravel()[self.free] ** 2
        self.differences, self.tv_weights = gradient_matrices(m.geometry)

    @staticmethod
    def cells(geometry):
        """Corners of the cells; those of a grid's rectangles go round."""
        if isinstance(geometry, ef.Mesh):
            return geometry.cells
        node = np.arange(geometry.n_nodes).reshape(geometry.shape)
        return np.stack([c.ravel() for c in (node[:-1, :-1], node[1:, :-1], node[1:, 1:], node[:-1, 1:])], axis=1)

    def stiffness(self, x):
        """K(x), all dofs."""
        values = np.einsum("ea,eaij->eij", x[self.nodes], self.psi)
        rows, columns = (np.broadcast_to(d, values.shape).ravel() for d in (self.dofs[:, :, None], self.dofs[:, None]))
        return sp.csc_array((values.ravel(), (rows, columns)), shape=(2 * len(x),) * 2)

    def sensitivity(self, u, z):
        """D(u)^T z."""
        own = np.einsum("eaij,ei,ej->ea", self.psi, z[self.dofs], u[self.dofs])
        return np.bincount(self.nodes.ravel(), own.ravel(), minlength=len(u) // 2)

    def factor(self, k):
        """SuperLU of the equations' rows and columns."""
        square = sp.csc_matrix(k[self.free][:, self.free])
        return sla.splu(square, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve

    def prior(self, x):
        """Total variation of log x and its gradient, by autograd."""
        x = torch.tensor(x, requires_grad=True)
        z = torch.log(x)[:, None]
        square = sum((torch.sparse.mm(d, z)[:, 0]) ** 2 for d in self.differences)
        value = (self.tv_weights * (torch.sqrt(square + SMOOTHING**2) - SMOOTHING)).sum()
        value.backward()
        return value.item(), x.grad.numpy()

    def exact(self, x):
        """The objective and its exact gradient."""
        solve = self.factor(self.stiffness(x))
        u, z = self.u.copy(), np.zeros_like(self.u)
        u[self.free] = solve(self.f)
        difference = u[self.free] - self.u[self.free]
        z[self.free] = solve(self.precision * difference)
        value, slope = self.prior(x)
        data = self.precision @ difference**2 / 2
        return data + self.weight * value, self.weight * slope - self.sensitivity(u, z)

    def objective(self, x):
        """That of a map."""
        return self.exact(np.ravel(x))[0]

    def descend(self, x, track):
        """Equations 6 and 7: projected gradient steps with Gamma frozen, then Gamma anew."""
        low, high = x.mean() / 100, 100 * x.mean()
        track.begin = time.process_time()
        for _ in range(UPDATES):
            begin, solve = x, self.factor(self.stiffness(x))

            def weighted(r, solve=solve):
                z = np.zeros_like(self.u)
                z[self.free] = solve(self.precision * solve(r))  # K is symmetric, and S_w = 0
                return z

            def curvature(v, weighted=weighted, x=x):
                small = 1e-4 * x.mean()
                of_prior = (self.prior(x + small * v)[1] - self.prior(x)[1]) / small
                force = (self.stiffness(v) @ self.u)[self.free]
                return self.sensitivity(self.u, weighted(force)) + self.weight * of_prior

            v = np.random.default_rng(0).normal(size=len(x))
            for _ in range(15):
                v /= np.linalg.norm(v)
                v = curvature(v)
            step = STEP / np.linalg.norm(v)
            for _ in range(STEPS):
                r = self.f - (self.stiffness(x) @ self.u)[self.free]
                gradient = self.weight * self.prior(x)[1] - self.sensitivity(self.u, weighted(r))
                x = np.clip(x - step * gradient, low, high)
            if np.linalg.norm(x - begin) < 1e-3 * np.linalg.norm(begin):
                break
        track.stop()
        return x

    def lbfgs(self, x, track):
        """The exact gradient in log x under SciPy's L-BFGS-B."""
        track.begin = time.process_time()

        def function(z):
            value, gradient = self.exact(np.exp(z))
            return value, gradient * np.exp(z)

        options = {"maxfun": EVALUATIONS, "maxiter": EVALUATIONS, "ftol": 1e-9}
        found = minimize(function, np.log(x), jac=True, method="L-BFGS-B", options=options)
        track.stop()
        return np.exp(found.x)

    def check(self):
        """Refuse to race if the script computes something else than we do."""
        x = np.ravel(self.m.reference)
        value, gradient = ef.Fidelity(self.m)(x)
        prior, slope = TotalVariation(self.m.geometry, SMOOTHING)(x)
        own, own_gradient = self.exact(x)
        assert abs(own - value - self.weight * prior) < 1e-4 * own, (own, value, self.weight * prior)
        wanted = gradient + self.weight * slope
        assert np.linalg.norm(own_gradient - wanted) < 1e-3 * np.linalg.norm(wanted)


def element_matrices(corners, law):
    """Stiffness matrices of all cells for a unit modulus at each of their nodes, (cells, a, 2 a, 2 a)."""
    count = corners.shape[1]
    lam, mu = law.lame_lambda, law.lame_mu
    elasticity = np.array([[lam + 2 * mu, lam, 0], [lam, lam + 2 * mu, 0], [0, 0, mu]])
    total = 0.0
    for values, slopes, weight in rule(count):
        jacobian = np.einsum("ak,eai->eki", slopes, corners)
        gradients = np.einsum("eik,ak->eai", np.linalg.inv(jacobian), slopes)
        strain = np.zeros((len(corners), 3, 2 * count))
        strain[:, 0, :count], strain[:, 1, count:] = gradients[:, :, 0], gradients[:, :, 1]
        strain[:, 2, :count], strain[:, 2, count:] = gradients[:, :, 1], gradients[:, :, 0]
        stiff = np.einsum("eki,kl,elj->eij", strain, elasticity, strain)
        size = weight * np.abs(np.linalg.det(jacobian))
        total = total + np.einsum("e,a,eij->eaij", size, values, stiff)
    return total


def rule(count):
    """Points of the quadrature: values and slopes of the shape functions, weight."""
    if count == 3:
        yield np.full(3, 1 / 3), np.array([[-1.0, -1], [1, 0], [0, 1]]), 0.5
        return
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    for point in signs / np.sqrt(3):
        a, b = (1 + signs * point).T
        yield a * b / 4, np.stack([signs[:, 0] * b, signs[:, 1] * a], axis=1) / 4, 1.0


def gradient_matrices(geometry):
    """Differences over one cell along each axis as sparse tensors, and the weights of the cells in the prior."""
    if isinstance(geometry, ef.Mesh):
        corners = geometry.points[geometry.cells]
        slopes = np.array([[-1.0, -1], [1, 0], [0, 1]])
        jacobian = np.einsum("ak,eai->eki", slopes, corners)
        gradients = np.einsum("eik,ak->eai", np.linalg.inv(jacobian), slopes)
        area = np.abs(np.linalg.det(jacobian)) / 2
        size = np.sqrt(area)
        rows = np.repeat(np.arange(len(area)), 3)
        shape = (len(area), geometry.n_nodes)
        matrices = [
            sp.coo_array(((size[:, None] * gradients[:, :, i]).ravel(), (rows, geometry.cells.ravel())), shape=shape)
            for i in range(2)
        ]
        body = np.sqrt(area.sum())
        weights = area / size / body
    else:
        n0, n1 = geometry.shape
        along = [sp.diags_array([np.r_[-np.ones(n - 1), 0], np.ones(n - 1)], offsets=[0, 1]) for n in (n0, n1)]
        both = sp.kron(along[0], sp.eye_array(n1)), sp.kron(sp.eye_array(n0), along[1])
        matrices = [sp.coo_array(own) for own in both]
        weights = np.full(n0 * n1, 1 / np.sqrt((n0 - 1) * (n1 - 1)))
    tensors = [
        torch.sparse_coo_tensor(np.stack(matrix.coords), matrix.data, matrix.shape, check_invariants=True).coalesce()
        for matrix in matrices
    ]
    return tensors, torch.tensor(weights)


if __name__ == "__main__":
    main()
