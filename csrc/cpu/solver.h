// Conjugate gradients in double precision for K(x) + diag(shift) on a grid, with one V-cycle of a multigrid hierarchy in single
// precision as preconditioner.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../hierarchy.h"
#include "interrupt.h"
#include "level.h"
#include "parallel.h"

namespace elastofast {

// Runs of conjugate gradients at most, each of which starts from the true residual of the last one; as RUNS in
// grid_cuda.py. Not studied.
constexpr int kRuns = 4;

struct SolveResult {
  int iterations = 0;
  double residual = 0;  // true relative residual |b - A x| / |b|
  bool converged = true;
};

// Threads may share one: its work is done by one of them at a time.
template <class Hierarchy>
class Multigrid {
 public:
  static constexpr int kDim = Hierarchy::kDim;

  // The arguments are those of the hierarchy. Deflated dofs count as free until `deflate`.
  template <class... Arguments>
  explicit Multigrid(Arguments&&... arguments)
      : hierarchy_(std::forward<Arguments>(arguments)...),
        n0_(hierarchy_.layers()),
        n1_(hierarchy_.layer()),
        n_(size_t(n0_) * n1_),
        fixed_(hierarchy_.fixed()) {
    r_.resize(kDim * n_), p_.resize(kDim * n_), q_.resize(kDim * n_);
  }

  // Another modulus, and another shift or none, for the same fixed dofs: afterwards as if newly made, with the deflated dofs
  // free. If it is interrupted, it has to be repeated before anything else is asked for.
  void update(const double* x, const double* shift);

  // Fixes the deflated dofs. modes: for each the displacement that the body takes without them, one at this dof and zero at
  // the others. A cycle removes them from its result, so that the hierarchy never has to resolve the reaction of a single
  // dof.
  void deflate(const double* modes);

  // w = sum of d over the steps d = momentum d + gain M r, r -= A d, with M the V-cycle: M b for one step (0, 1), a polynomial
  // close to A^-1 b for the steps of the Chebyshev semi-iteration.
  void accelerated(const double* b, double* w, const Steps& steps);
  // Solves A x = b, beginning with the given x. Stops when |r| <= rtol |b|, or, with `energy`, when the
  // preconditioned residual norm (about the error in the energy norm) has fallen by rtol.
  SolveResult solve(const double* b, double* x, double rtol, int max_iterations, bool energy);
  void apply(const double* p, double* q);  // q = A p, zero at fixed dofs

  size_t nodes() const { return n_; }
  const std::vector<long>& deflated_dofs() const { return hierarchy_.deflated_dofs(); }
  std::vector<double> eigenvalue_bounds() const { return hierarchy_.eigenvalue_bounds(); }
  size_t bytes() const {
    size_t total = hierarchy_.bytes() + sizeof(double) * (r_.size() + p_.size() + q_.size());
    for (const Mode& mode : modes_) total += sizeof(double) * mode.values.size();
    return total;
  }

 private:
  double precondition(const double* r, double r_norm);
  double set_residual(const double* b, const double* product);
  template <class Body>
  double sum_planes(Body body) const;
  std::unique_lock<std::mutex> take();  // the right to work, for a while

  std::mutex mutex_;
  bool ready_ = true;  // whether the hierarchy is whole
  Hierarchy hierarchy_;
  int n0_, n1_;  // layers along axis 0, and the nodes in one
  size_t n_;     // nodes
  struct Mode {  // of a deflated dof
    long dof;
    Doubles values;  // empty if the mode is a translation
    double translation[kDim];
  };
  std::vector<Mode> modes_;  // none until the deflated dofs are fixed
  FixedDofs fixed_;          // of the system that is solved; those of the hierarchy never hold a deflated dof
  Doubles r_, p_, q_;
};

template <class Hierarchy>
std::unique_lock<std::mutex> Multigrid<Hierarchy>::take() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!ready_) throw std::runtime_error("the last update of this solver was interrupted: update it again");
  return lock;
}

template <class Hierarchy>
void Multigrid<Hierarchy>::update(const double* x, const double* shift) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ready_ = false;
  hierarchy_.clear_work();
  hierarchy_.set_up(x, shift);
  modes_.clear();
  fixed_ = hierarchy_.fixed();
  ready_ = true;
}

template <class Hierarchy>
void Multigrid<Hierarchy>::deflate(const double* modes) {
  const auto lock = take();
  const bool first = modes_.empty();
  modes_.clear();
  for (const long dof : deflated_dofs()) {
    Mode mode{dof, {}, {}};
    bool constant = true;
    for (int c = 0; c < kDim; ++c) mode.translation[c] = modes[c * n_];
    for (int c = 0; c < kDim && constant; ++c)
      constant = std::all_of(modes + c * n_, modes + (c + 1) * n_, [&](double v) { return v == mode.translation[c]; });
    mode.values.assign(modes, modes + (constant ? 0 : kDim * n_));
    modes_.push_back(std::move(mode));
    if (first) fixed_.add(size_t(dof), n0_, n1_);
    modes += kDim * n_;
  }
}

// One V-cycle for a residual that is zero at every fixed dof. The result is the finest level's solution times the factor
// that is returned; its values at fixed dofs mean nothing.
template <class Hierarchy>
double Multigrid<Hierarchy>::precondition(const double* r, double r_norm) {
  const int n0 = n0_, n1 = n1_;
  float *const in = hierarchy_.residual(), *const out = hierarchy_.solution();
  if (!(r_norm > 0)) r_norm = 1;
  const double scale = 1 / r_norm;
  double totals[kDim];
  for (int c = 0; c < kDim; ++c)
    totals[c] = sum_rows(n0, n1, [&](int begin, int end) {
      const size_t from = c * n_ + size_t(begin) * n1;
      return kernels().outer->lower(scale, r + from, in + from, size_t(end - begin) * n1);
    });
  for (const Mode& mode : modes_) {
    double net = 0;  // force along the mode
    for (int c = 0; c < kDim; ++c)
      net += mode.values.empty() ? mode.translation[c] * totals[c] : sum_rows(n0, n1, [&](int begin, int end) {
        const size_t from = c * n_ + size_t(begin) * n1;
        return kernels().outer->dot(mode.values.data() + from, r + from, size_t(end - begin) * n1);
      });
    in[mode.dof] = float(-net * scale);  // the reaction that balances it
  }
  hierarchy_.cycle();
  std::vector<float> at_dofs;
  for (const Mode& mode : modes_) at_dofs.push_back(out[mode.dof]);
  for (size_t m = 0; m < modes_.size(); ++m) {
    const Mode& mode = modes_[m];
    const float at_dof = at_dofs[m];
    for (int c = 0; c < kDim; ++c) {
      if (mode.values.empty() && mode.translation[c] == 0) continue;
      for_rows(n0, n1, [&](int begin, int end) {
        const size_t from = c * n_ + size_t(begin) * n1, to = c * n_ + size_t(end) * n1;
        const float offset = at_dof * float(mode.translation[c]);
        if (mode.values.empty())
          for (size_t i = from; i < to; ++i) out[i] -= offset;
        else
          for (size_t i = from; i < to; ++i) out[i] -= float(at_dof * mode.values[i]);
      });
    }
  }
  return r_norm / hierarchy_.modulus();
}

// The sum of body(first dof, number of dofs) over chunks of both planes.
template <class Hierarchy>
template <class Body>
double Multigrid<Hierarchy>::sum_planes(Body body) const {
  return sum_rows(n0_, n1_, [&](int begin, int end) {
    const size_t from = size_t(begin) * n1_, count = size_t(end - begin) * n1_;
    double sum = body(from, count);
    for (int c = 1; c < kDim; ++c) sum += body(c * n_ + from, count);
    return sum;
  });
}

// r = b - product, or b without one, zero at fixed dofs; returns |r|^2.
template <class Hierarchy>
double Multigrid<Hierarchy>::set_residual(const double* b, const double* product) {
  const int n0 = n0_, n1 = n1_;
  return sum_rows(n0, n1, [&](int begin, int end) {
    double sum = 0;
    for (int c = 0; c < kDim; ++c)
      for (size_t i = c * n_ + size_t(begin) * n1; i < c * n_ + size_t(end) * n1; ++i)
        r_[i] = product ? b[i] - product[i] : b[i];
    fixed_.clear(r_.data(), n0, n1, begin, end);
    for (int c = 0; c < kDim; ++c) {
      const double* r = &r_[c * n_ + size_t(begin) * n1];
      sum += kernels().outer->dot(r, r, size_t(end - begin) * n1);
    }
    return sum;
  });
}

template <class Hierarchy>
void Multigrid<Hierarchy>::accelerated(const double* b, double* w, const Steps& steps) {
  const auto lock = take();
  const int n0 = n0_, n1 = n1_;
  const Outer& k = *kernels().outer;
  const double norm = std::sqrt(set_residual(b, nullptr));
  for (size_t step = 0; step < steps.size(); ++step) {
    stop_if_interrupted();
    const auto [momentum, gain] = steps[step];
    const double factor = precondition(r_.data(), norm);
    const float* low = hierarchy_.solution();
    double* d = steps.size() > 1 ? p_.data() : w;  // a single one needs no room of its own
    for_rows(n0, n1, [&](int begin, int end) {
      const size_t count = size_t(end - begin) * n1;
      for (int c = 0; c < kDim; ++c) {
        const size_t i = c * n_ + size_t(begin) * n1;
        k.raise_add(gain * factor, low + i, momentum, d + i, count);
      }
      fixed_.clear(d, n0, n1, begin, end);
      for (int c = 0; c < kDim && d != w; ++c) {
        const size_t i = c * n_ + size_t(begin) * n1;
        if (step) k.scale_add(1.0, d + i, 1.0, w + i, count);
        else std::copy_n(d + i, count, w + i);
      }
    });
    if (step + 1 == steps.size()) break;
    hierarchy_.apply_dot(d, q_.data(), fixed_);
    set_residual(r_.data(), q_.data());
  }
}

template <class Hierarchy>
void Multigrid<Hierarchy>::apply(const double* p, double* q) {
  const auto lock = take();
  std::copy(p, p + kDim * n_, p_.begin());
  fixed_.clear(p_.data(), n0_, n1_, 0, n0_);
  hierarchy_.apply_dot(p_.data(), q, fixed_);
}

template <class Hierarchy>
SolveResult Multigrid<Hierarchy>::solve(const double* b, double* x, double rtol, int max_iterations, bool energy) {
  const auto lock = take();
  const int n0 = n0_, n1 = n1_;
  const Outer& k = *kernels().outer;
  SolveResult result;
  fixed_.clear(x, n0, n1, 0, n0);
  const double bb = set_residual(b, nullptr);
  const double norm = std::sqrt(bb);
  if (norm == 0) {
    std::fill(x, x + kDim * n_, 0.0);
    return result;
  }
  const bool from_zero = std::all_of(x, x + kDim * n_, [](double v) { return v == 0; });
  auto residual = [&] {
    hierarchy_.apply_dot(x, q_.data(), fixed_);
    return set_residual(b, q_.data());
  };
  double rr = bb, first_energy = 0;
  if (energy) {  // the measure of b, so that a good first guess counts
    const double factor = precondition(r_.data(), norm);
    const float* low = hierarchy_.solution();
    first_energy = factor * sum_planes([&](size_t i, size_t n) { return k.dot_low(&r_[i], low + i, n); });
  }
  if (!from_zero) rr = residual();
  // the recursive residual drifts from the true one at tight tolerances: begin again from the true one
  for (int run = 0; run < kRuns; ++run) {
    double rz = 0;
    bool small = !energy && std::sqrt(rr) <= rtol * norm;
    while (!small && result.iterations < max_iterations) {
      stop_if_interrupted();
      const double factor = precondition(r_.data(), std::sqrt(rr));
      const float* low = hierarchy_.solution();
      const double next = factor * sum_planes([&](size_t i, size_t n) { return k.dot_low(&r_[i], low + i, n); });
      if (!std::isfinite(next)) {
        hierarchy_.clear_work();
        result.converged = false;
        result.residual = std::numeric_limits<double>::quiet_NaN();
        return result;
      }
      if (energy && next <= rtol * rtol * first_energy) break;
      const double beta = rz > 0 ? next / rz : 0;
      rz = next;
      for_rows(n0, n1, [&](int begin, int end) {
        for (int c = 0; c < kDim; ++c) {
          const size_t i = c * n_ + size_t(begin) * n1;
          k.raise_add(factor, low + i, beta, &p_[i], size_t(end - begin) * n1);
        }
        fixed_.clear(p_.data(), n0, n1, begin, end);
      });
      const double alpha = rz / hierarchy_.apply_dot(p_.data(), q_.data(), fixed_);
      rr = sum_planes([&](size_t i, size_t n) { return k.cg_update(alpha, &p_[i], &q_[i], x + i, &r_[i], n); });
      ++result.iterations;
      small = !energy && std::sqrt(rr) <= rtol * norm;
    }
    if (energy) break;
    rr = residual();
    if (std::sqrt(rr) <= rtol * norm || result.iterations >= max_iterations) break;
  }
  result.residual = std::sqrt(rr) / norm;
  result.converged = energy ? result.iterations < max_iterations : result.residual <= rtol;
  return result;
}

}  // namespace elastofast
