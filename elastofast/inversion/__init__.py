"""From a measurement to a map: initial maps, optimisers, the prior's weight, coarse-to-fine levels, stopping."""
