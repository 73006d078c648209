"""Reconstructions by a network as it is at the moment, on whose errors it is trained further."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch

from ..inversion.reconstruct import reconstruct
from ..priors import Critic
from ..progress import progress_bar
from .maps import Maps

__all__ = ["plain_map", "reconstruction_errors"]

# More steps than the splitting takes of itself. With a limit, `reconstruct` does not judge the map: it stays the
# network's own.
ENOUGH_STEPS = 45
# Factor on the noise variance that reconstructions have where the model is wrong, see `inversion.fallback`.
NOISE_INFLATION = 16.0


def plain_map(measurement, prior):
    """The result of a learned prior with its default weight, whatever the data say about it."""
    return reconstruct(measurement, prior=prior, noise="gaussian", max_iterations=ENOUGH_STEPS)


class _Recorded:
    """A critic that remembers the maps which it is asked about."""

    def __init__(self, critic, shape, splitting):
        self.critic, self.shape, self.splitting, self.seen = critic, shape, splitting, []

    def target(self, z, shape):
        """As `Critic.target`."""
        if tuple(shape) == tuple(self.shape):
            self.seen.append(np.array(z).reshape(shape))
        return self.critic.target(z, shape)


def reconstruction_errors(
    network, data, indices: Iterable[int], standard, rng: np.random.Generator, *, kept: int, stopped: Callable[[], bool]
) -> Maps | None:
    """True maps, and errors that the reconstructions of their measurements with a critic have on their way and at their
    end.

    Where the measurement states a wrong Poisson ratio, the data are trusted less, as they are when that is noticed.

    Parameters
    ----------
    network : DistanceCritic
    data : Dataset
    indices : iterable of int
        Of the samples that are reconstructed.
    standard : Standard
    rng : numpy.random.Generator
    kept : int
        Maps of each reconstruction that are kept: the last, and others at random.
    stopped : callable
        Whether to stop early.

    Returns
    -------
    Maps or None
        Of as many true maps as indices, with the errors of the reconstructions in ``errors``; None if it was stopped.
    """
    critic = Critic(copy.deepcopy(network).cpu(), {"standard": standard._asdict()})
    indices = np.asarray(list(indices))
    errors = []
    with progress_bar("reconstructing", "map", True, len(indices)) as bar:
        for i in indices:
            if stopped():
                return None
            m = data.measurement(i)
            wrong = data.settings is not None and data.settings[i].poisson != data.settings[i].true_poisson
            splitting = critic.splitting._replace(noise_inflation=NOISE_INFLATION if wrong else 1.0)
            prior = _Recorded(critic, m.geometry.shape, splitting)
            result = plain_map(m, prior)
            chosen = rng.choice(len(prior.seen), kept - 1, replace=len(prior.seen) < kept - 1)
            z = np.stack([np.log(result.modulus), *(prior.seen[k] for k in chosen)])
            error = z - np.log(m.reference)
            if result.relative:
                error -= error.mean(axis=(1, 2), keepdims=True)
            errors.append((error / standard.scale).astype(np.float32))
            bar.update()
    truth = standard.apply(torch.as_tensor(data.modulus(indices), dtype=torch.float32))
    return Maps(truth, None, torch.as_tensor(data.mask(indices)), torch.as_tensor(np.stack(errors)))
