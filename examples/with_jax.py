"""A neural field in JAX, fitted to a measurement: gradients pass through elastofast's data term.

A small network maps coordinates to log x. Its weights are found by Adam on the data term alone; the network is the
prior. The data term answers a modulus that cannot be solved with an infinite value. Needs jax.
"""

import jax
import jax.numpy as jnp
import numpy as np

import elastofast as ef
from elastofast.interop.jax import misfit


def network(weights, points):
    """Log x at points (n, 2) in units of the body."""
    waves = points @ weights["frequencies"]
    hidden = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], axis=1)
    hidden = jnp.tanh(hidden @ weights["first"] + weights["shift"])
    return jnp.log(12.5e3) + hidden @ weights["last"]


def main(nodes=48, steps=300, width=64, rate=3e-3):
    """Fit the network and return the errors of log x, root mean square, before and after."""
    grid = ef.Grid(shape=(nodes, nodes), spacing=(32e-3 / (nodes - 1),) * 2)
    law, load = ef.PlaneStress(poisson=0.495), ef.compression(grid, pressure=100.0)
    truth, _ = ef.lesion(grid, seed=1, size=(0.3, 0.4))
    fidelity = ef.Fidelity(ef.simulate(grid, law, load, truth, snr=35.0, seed=0), rtol=1e-6, on_failure="inf")
    points = jnp.asarray(grid.points / grid.points.max())

    rng = np.random.default_rng(0)
    weights = {
        "frequencies": 6.0 * rng.normal(size=(2, width)),
        "first": rng.normal(size=(2 * width, width)) / np.sqrt(2 * width),
        "shift": np.zeros(width),
        "last": np.zeros(width),
    }
    weights = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weights)
    moments = jax.tree.map(lambda a: (jnp.zeros_like(a), jnp.zeros_like(a)), weights)

    @jax.value_and_grad
    def loss(weights):
        return misfit(fidelity, jnp.exp(network(weights, points)).reshape(grid.shape)) / fidelity.n_data

    @jax.jit
    def adam(weight, moment, slope, number):
        first, second = 0.9 * moment[0] + 0.1 * slope, 0.99 * moment[1] + 0.01 * slope**2
        step = first / (1 - 0.9**number) / (jnp.sqrt(second / (1 - 0.99**number)) + 1e-8)
        return weight - rate * step, (first, second)

    def error():
        return float(jnp.sqrt(jnp.mean((network(weights, points) - np.log(truth).ravel()) ** 2)))

    errors = [error()]
    for number in range(1, steps + 1):
        value, slopes = loss(weights)
        for name in weights:
            weights[name], moments[name] = adam(weights[name], moments[name], slopes[name], number)
        if number % 20 == 0:
            errors.append(error())
            print(f"step {number}: chi2 {2 * value:.3g}, error of log x {errors[-1]:.3f}")
    return errors


if __name__ == "__main__":
    main()
