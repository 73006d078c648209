"""How well a modulus explains a measurement: the noise covariance Gamma and the data term with its gradient."""
