"""Where arrays live and how pointwise work and inner products are done there: NumPy on the processor, CuPy on a GPU."""
