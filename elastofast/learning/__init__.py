"""Learned priors: data sets, networks, training and the comparison of methods."""
