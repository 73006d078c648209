// Geometric multigrid for K(x) + diag(shift) on a grid of three axes: see volume_plan.h for the levels and the interpolation,
// `VolumePatches` for the smoother, which a Chebyshev polynomial accelerates. No matrix is stored. The V-cycle runs in single
// precision.
#pragma once
#include <memory>
#include <vector>

#include "../volume_plan.h"
#include "level.h"

namespace elastofast {

class VolumeHierarchy {
 public:
  static constexpr int kDim = 3;

  // x: modulus per node; shift: 3N values or null. smoother: its steps, for a largest eigenvalue of one.
  VolumeHierarchy(std::shared_ptr<const VolumePlan> plan, const double* x, const double* shift, Steps smoother);
  ~VolumeHierarchy();

  // As those of `PlanarHierarchy`.
  void set_up(const double* x, const double* shift);
  void clear_work();
  int layers() const { return plan_->form.n[0]; }
  int layer() const { return int(plan_->form.layer()); }
  const std::vector<long>& deflated_dofs() const { return plan_->deflated_dofs; }
  double modulus() const { return modulus_; }
  const FixedDofs& fixed() const;
  float* residual();
  float* solution();
  void cycle();
  double apply_dot(const double* p, double* q, const FixedDofs& fixed) const;
  std::vector<double> eigenvalue_bounds() const;
  size_t bytes() const;

 private:
  struct Level;
  struct Coarsest;

  Floats set_scale(Level& level);
  void estimate_eigenvalue(Level& level);
  void smooth(Level& level, bool after);
  void residual_minus_product(const Level& level, const float* d, const float* r, float* out) const;

  std::shared_ptr<const VolumePlan> plan_;
  Steps smoother_;
  Doubles x_, shift_;
  double modulus_ = 1;  // mean of x; the hierarchy works on x / modulus
  std::vector<std::unique_ptr<Level>> levels_;
  std::unique_ptr<Coarsest> coarsest_;
};

}  // namespace elastofast
