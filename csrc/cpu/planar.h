// Geometric multigrid for K(x) + diag(shift) on a grid of two axes.
//
// Coarse operators are Galerkin products and stored as stencils; the finest level is matrix-free. Interpolation is bilinear
// on the edges of coarse cells, followed by an exact solve for the nodes inside each coarse cell (static condensation), so
// that interpolated displacements do not change the volume of nearly incompressible cells. The smoother is a Chebyshev
// polynomial with the sum of inverted 4-node patches (see Patch) as its preconditioner. The V-cycle runs in single precision.
#pragma once
#include <memory>
#include <vector>

#include "../hierarchy.h"
#include "level.h"

namespace elastofast {

class PlanarHierarchy {
 public:
  static constexpr int kDim = 2;

  // x: modulus per node; fixed: 2N flags; shift: 2N values or null. deflated_dofs: fixed dofs that the hierarchy
  // leaves free, at most one. smoother: its steps, for a largest eigenvalue of one.
  PlanarHierarchy(const GridForm<double>& form, const double* x, const uint8_t* fixed, const double* shift,
                  std::vector<long> deflated_dofs, Steps smoother);
  ~PlanarHierarchy();

  // Another modulus, and another shift or none, for the same fixed dofs.
  void set_up(const double* x, const double* shift);
  // Forgets what earlier work has left: it is multiplied by zeros here and there, which infinite values would survive.
  void clear_work();

  int layers() const { return form_.n0; }
  int layer() const { return form_.n1; }  // nodes
  const std::vector<long>& deflated_dofs() const { return deflated_dofs_; }
  double modulus() const { return modulus_; }
  const FixedDofs& fixed() const;  // the deflated dofs not among them
  // One V-cycle: the solution for the residual, of the matrix over `modulus`; at fixed dofs it means nothing.
  float* residual();
  float* solution();
  void cycle();
  // q = A p, zero at the given dofs, where p is zero; returns p.q
  double apply_dot(const double* p, double* q, const FixedDofs& fixed) const;
  std::vector<double> eigenvalue_bounds() const;  // of the smoothed operator, one a level
  size_t bytes() const;

 private:
  struct Level;
  struct FinestCells;
  struct CellMatrices;
  struct Coarsest;

  // set-up
  Doubles scale_modulus();
  Doubles scale_shift(const double* shift);
  template <class Cells>
  CellMatrices coarsen(size_t l, const Cells& cells);
  void assemble_stencil(Level& level, const CellMatrices& cells);
  template <class Cells>
  void set_up_patches(Level& level, const Cells& cells);
  void patch_traces(const Level& level, int row, float* trace) const;
  void estimate_eigenvalue(Level& level);

  // V-cycle
  void presmooth(Level& level);
  void restrict(const Level& level, Level& coarse);
  void coarse_solve();
  void prolong(Level& level, const Level& coarse);
  void postsmooth(Level& level);
  void smooth(Level& level, bool after);
  void residual_minus_product(const Level& level, Rows<const float> d, Rows<const float> r, Rows<float> out, int begin,
                              int end) const;

  GridForm<double> form_;
  GridForm<float> form32_;
  std::vector<long> deflated_dofs_;
  HierarchyPlan plan_;
  Steps smoother_;
  size_t n_;  // nodes
  Doubles x_, shift_;
  Floats x32_, shift32_;  // over the mean modulus
  double modulus_ = 1;    // mean of x; the hierarchy works on x / modulus
  std::vector<std::unique_ptr<Level>> levels_;
  std::unique_ptr<Coarsest> coarsest_;
  std::vector<Floats> windows_;  // of each thread, for smoothing
};

}  // namespace elastofast
