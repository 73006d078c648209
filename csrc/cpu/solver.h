// Geometric multigrid for K(x) + diag(shift) on a grid, and conjugate gradients around it.
//
// Coarse operators are Galerkin products and stored as stencils; the finest level is matrix-free. Interpolation is bilinear
// on the edges of coarse cells, followed by an exact solve for the nodes inside each coarse cell (static condensation), so
// that interpolated displacements do not change the volume of nearly incompressible cells. The smoother is a Chebyshev
// polynomial with the sum of inverted 4-node patches (see Patch) as its preconditioner. The V-cycle runs in single precision
// and preconditions conjugate gradients in double precision.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "../hierarchy.h"
#include "kernels.h"
#include "memory.h"

namespace elastofast {

// Fixed dofs of a level, by row.
struct FixedDofs {
  std::vector<int> row;                   // offsets, n0 + 1
  std::vector<std::pair<int, int>> dof;   // component, column
  void collect(const std::vector<uint8_t>& mask, int n0, int n1) {
    row.assign(1, 0);
    dof.clear();
    for (int j = 0; j < n0; ++j) {
      for (int k = 0; k < 2; ++k)
        for (int i = 0; i < n1; ++i)
          if (mask[(size_t(k) * n0 + j) * n1 + i]) dof.push_back({k, i});
      row.push_back(int(dof.size()));
    }
  }
  void add(size_t number, int n0, int n1) {
    const size_t n = size_t(n0) * n1;
    const int j = int(number % n / n1);
    dof.insert(dof.begin() + row[j + 1], {int(number / n), int(number % n1)});
    for (int r = j + 1; r <= n0; ++r) ++row[r];
  }
  template <class T>
  void clear(Rows<T> field, int begin, int end) const {
    for (int j = begin; j < end; ++j)
      for (int e = row[j]; e < row[j + 1]; ++e) field.row(dof[e].first, j)[dof[e].second] = T(0);
  }
  template <class T>
  void clear(T* field, int n0, int n1, int begin, int end) const {
    clear(Rows<T>::field(field, n0, n1), begin, end);
  }
  // Removes the fixed dofs from the cell matrices of cell row j.
  void clear_cells(double* planes, int ld, int cells, int j) const {
    for (int s = 0; s < 2; ++s)
      for (int e = row[j + s]; e < row[j + s + 1]; ++e)
        for (int t = 0; t < 2; ++t) {
          const int c = dof[e].second - t, p = kCorners * dof[e].first + 2 * s + t;
          if (c < 0 || c >= cells) continue;
          for (int q = 0; q < kCellDofs; ++q) planes[size_t(entry(p, q)) * ld + c] = 0;
        }
  }
};

struct SolveResult {
  int iterations = 0;
  double residual = 0;  // true relative residual |b - A x| / |b|
  bool converged = true;
};

// Threads may share one: its work is done by one of them at a time.
class Multigrid {
 public:
  // x: modulus per node; fixed: 2N flags; shift: 2N values or null. deflated_dof: a fixed dof that the hierarchy leaves
  // free, or -1; it counts as free until `deflate`. smoother: its steps, for a largest eigenvalue of one.
  Multigrid(const GridForm<double>& form, const double* x, const uint8_t* fixed, const double* shift, long deflated_dof,
            Steps smoother);
  ~Multigrid();

  // Another modulus, and another shift or none, for the same fixed dofs: afterwards as if newly made, with the deflated dof
  // free. If it is interrupted, it has to be repeated before anything else is asked for.
  void update(const double* x, const double* shift);

  // Fixes the deflated dof. mode: the displacement (2N values, one at the dof) that the body takes without it. A cycle
  // removes it from its result, so that the hierarchy never has to resolve the reaction of a single dof.
  void deflate(const double* mode);

  // w = sum of d over the steps d = momentum d + gain M r, r -= A d, with M the V-cycle: M b for one step (0, 1), a polynomial
  // close to A^-1 b for the steps of the Chebyshev semi-iteration.
  void accelerated(const double* b, double* w, const Steps& steps);
  // Solves A x = b, beginning with the given x. Stops when |r| <= rtol |b|, or, with `energy`, when the
  // preconditioned residual norm (about the error in the energy norm) has fallen by rtol.
  SolveResult solve(const double* b, double* x, double rtol, int max_iterations, bool energy);
  void apply(const double* p, double* q);  // q = A p, zero at fixed dofs

  size_t nodes() const { return n_; }
  long deflated_dof() const { return plan_.deflated_dof; }
  std::vector<double> eigenvalue_bounds() const;  // of the smoothed operator, one a level
  size_t bytes() const;

 private:
  struct Level;
  struct FinestCells;
  struct CellMatrices;
  struct Coarsest;

  // set-up
  void set_up(const double* x, const double* shift);
  void clear_work();
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
  void cycle();
  void presmooth(Level& level);
  void restrict(const Level& level, Level& coarse);
  void coarse_solve();
  void prolong(Level& level, const Level& coarse);
  void postsmooth(Level& level);
  void smooth(Level& level, bool after);
  void residual_minus_product(const Level& level, Rows<const float> d, Rows<const float> r, Rows<float> out, int begin,
                              int end) const;

  // conjugate gradients
  double precondition(const double* r, double r_norm);
  double set_residual(const double* b, const double* product);
  template <class Body>
  double sum_planes(Body body) const;
  double apply_dot(const double* p, double* q);

  std::unique_lock<std::mutex> take();  // the right to work, for a while

  std::mutex mutex_;
  bool ready_ = false;  // whether the hierarchy is that of x_
  GridForm<double> form_;
  GridForm<float> form32_;
  HierarchyPlan plan_;
  Steps smoother_;
  size_t n_;  // nodes
  Doubles x_, shift_;
  Floats x32_, shift32_;  // over the mean modulus
  double modulus_ = 1;    // mean of x; the hierarchy works on x / modulus
  bool deflates_ = false;  // whether the deflated dof is fixed by now
  Doubles mode_;           // of the deflated dof; empty if the mode is a translation
  double translation_[2] = {0, 0};
  FixedDofs fixed_;  // of the system that is solved; the levels' own lists never hold the deflated dof
  std::vector<std::unique_ptr<Level>> levels_;
  std::unique_ptr<Coarsest> coarsest_;
  std::vector<Floats> windows_;  // of each thread, for smoothing
  // vectors of the conjugate gradients
  Doubles r_, p_, q_;
};

}  // namespace elastofast
