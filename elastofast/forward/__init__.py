"""The forward model K(x) u = f: the trilinear form on grids and meshes, its sparse matrices, and solvers."""
