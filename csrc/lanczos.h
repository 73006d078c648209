// Largest eigenvalue of (smoother x matrix) by a few Lanczos steps, whose tridiagonal matrix comes from the coefficients of
// conjugate gradients (Saad, Iterative Methods for Sparse Linear Systems, section 6.7).
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace elastofast {

struct Lanczos {
  static constexpr int kSteps = 10;  // not studied
  // The steps approach the largest eigenvalue from below, the isolated one of a rough modulus last, and the Chebyshev
  // smoother would amplify what lies above its interval. tests/test_multigrid.py has such moduli.
  static constexpr double kMargin = 1.1;
  static constexpr int kBisections = 40;        // of an interval, to 1e-12 of its length
  static constexpr double kTinyPivot = 1e-300;  // in place of a pivot of zero
  double diagonal[kSteps], off[kSteps];
  double rz, alpha, beta;
  int steps;
  bool ended;

  EF_HD void start() { rz = beta = 0, alpha = 1, steps = 0, ended = false; }

  // After the smoother: residual . smoothed residual. Gives beta of the next direction.
  EF_HD void direction(double product) {
    if (ended || !(product > 0)) {
      ended = true;
      return;
    }
    beta = steps ? product / rz : 0;
    rz = product;
  }
  // After the matrix: direction . (matrix x direction). Gives alpha of the next residual.
  EF_HD void step(double curvature) {
    if (ended || !(curvature > 0)) {
      ended = true;
      return;
    }
    const double now = rz / curvature;
    if (steps) off[steps - 1] = std::sqrt(beta) / alpha;
    diagonal[steps] = 1 / now + (steps ? beta / alpha : 0);
    alpha = now;
    ++steps;
  }

  EF_HD double largest() const {
    if (!steps) return 1;
    double lo = 0, hi = 0;
    for (int k = 0; k < steps; ++k) {
      const double radius = diagonal[k] + (k ? std::abs(off[k - 1]) : 0) + (k + 1 < steps ? std::abs(off[k]) : 0);
      hi = radius > hi ? radius : hi;
    }
    for (int step = 0; step < kBisections; ++step) {  // lambda is too small if a pivot of T - lambda I is positive
      const double mid = 0.5 * (lo + hi);
      double pivot = diagonal[0] - mid;
      bool above = pivot > 0;
      for (int k = 1; k < steps && !above; ++k) {
        pivot = diagonal[k] - mid - off[k - 1] * off[k - 1] / (pivot == 0 ? kTinyPivot : pivot);
        above = pivot > 0;
      }
      (above ? lo : hi) = mid;
    }
    return kMargin * hi;
  }
};

// The start vector: a linear congruential generator (Press et al., Numerical Recipes, section 7.1) with values in [-1, 1),
// one entry after the other, or entry i by itself.
struct LanczosStart {
  static constexpr float kUnit = 4.6566e-10f;  // about 2^-31
  uint32_t state = 1, factor = 1664525u, constant = 1013904223u;
  EF_HD float next() {
    state = factor * state + constant;
    return float(int32_t(state)) * kUnit;
  }
  static EF_HD float at(uint32_t i) {
    LanczosStart skipped, power;  // power: as many steps at once as the bit of i says
    for (; i; i >>= 1) {
      if (i & 1) skipped.state = power.factor * skipped.state + power.constant;
      power.constant *= power.factor + 1, power.factor *= power.factor;
    }
    return skipped.next();
  }
};

}  // namespace elastofast
