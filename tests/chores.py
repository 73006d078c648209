"""Tasks that are worked on in other processes, in a module that these import quickly."""

import os
import warnings


def squared(x):
    if x == 2:
        warnings.warn("two is even", UserWarning, stacklevel=1)
    return x * x, os.getcwd(), os.environ["OMP_NUM_THREADS"]


def failing(x):
    raise ValueError(f"{x} cannot be done")


def dying(x):
    os._exit(1)
