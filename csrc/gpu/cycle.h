// What runs in a V-cycle on a device: smoother, transfers, direct solve of the coarsest level. A level's fields are two planes
// of nodes for each batch member, in single precision; stored stencils are kPlanes planes of nodes.
#pragma once
#include "../coarsest.h"
#include "../lanczos.h"
#include "contractions.h"

namespace elastofast {

// ------------------------------------------------------------------------------------------------- smoothing

// One step of the smoother, with (u, v) the sums of the patches at a node: d = a d + b / lmax (u, v), y += d; in the first
// step d = y = b / lmax (u, v).
struct Update {
  float *d, *y;
  long n;
  bool first;
  float a, b;
  const double* lmax;  // of each member, or null for one
  struct Before {
    float d0, d1, y0, y1, gain;
  };
  EF_HD Before before(int member, long node) const {
    const long at = 2 * n * member + node;
    const float gain = lmax ? b / float(lmax[member]) : b;
    if (first) return {0, 0, 0, 0, gain};
    return {a * d[at], a * d[at + n], y[at], y[at + n], gain};
  }
  EF_HD void operator()(int member, long node, float u, float v, const Before& k) const {
    const long at = 2 * n * member + node;
    const float e = k.d0 + k.gain * u, f = k.d1 + k.gain * v;
    d[at] = e, d[at + n] = f;
    y[at] = k.y0 + e, y[at + n] = k.y1 + f;
  }
};

// r -= (f + shift d), zero at fixed dofs; y += d if there is a y.
struct Residual {
  float* r;
  long n;
  const float *d, *shift;
  const uint8_t* fixed;
  float* y;
  struct Before {
    float r0, r1, y0, y1;
    bool fixed0, fixed1;
  };
  EF_HD Before before(int b, long node) const {
    const long at = 2 * n * b + node;
    Before k{r[at], r[at + n], 0, 0, fixed[node] != 0, fixed[node + n] != 0};
    if (shift) k.r0 -= shift[at] * d[at], k.r1 -= shift[at + n] * d[at + n];
    if (y) k.y0 = y[at] + d[at], k.y1 = y[at + n] + d[at + n];
    return k;
  }
  EF_HD void operator()(int b, long node, float u, float v, const Before& k) const {
    const long at = 2 * n * b + node;
    r[at] = k.fixed0 ? 0.f : k.r0 - u;
    r[at + n] = k.fixed1 ? 0.f : k.r1 - v;
    if (y) y[at] = k.y0, y[at + n] = k.y1;
  }
};

// The scale of a patch is positive. A special patch has its number there instead, marked by the sign bit.
EF_HD float special_mark(long number) {
  const uint32_t bits = uint32_t(number) | 0x80000000u;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return scale;
}
EF_HD long special_number(float scale) {  // -1 for others
  uint32_t bits;
  memcpy(&bits, &scale, sizeof bits);
  return bits & 0x80000000u ? long(bits & 0x7fffffffu) : -1;
}

struct PatchCells {
  Patch<float> patch;  // of member 0; the planes of the others follow
  long special_count;
  const float* r;
  EF_HD CornerForces<float> operator()(int b, int j, int i) const {
    const int n1 = patch.n1;
    const long n = long(patch.n0) * n1, cells = long(patch.n0 - 1) * (n1 - 1);
    const float *u = r + 2 * n * b + long(j) * n1 + i, s = patch.scale[cells * b + long(j) * (n1 - 1) + i];
    const Corners<float> cu = corners_at(u, n1), cv = corners_at(u + n, n1);
    const long number = special_number(s);
    return number < 0 ? patch_solve(patch.blocks.data, s, cu, cv)
                      : special_solve(patch.special + (special_count * b + number) * kEntries, cu, cv);
  }
};

template <class Out>
struct StencilBody {
  int n0, n1;
  const float* planes;
  const float* x;
  Out out;
  EF_HD void operator()(int b, long k) const {
    const long n = long(n0) * n1;
    const int j = row_of(k, n1), i = column_of(k, n1);
    const auto before = out.before(b, k);
    const float *A = planes + kPlanes * n * b, *u = x + 2 * n * b, *v = u + n;
    const float d01 = A[n + k];
    float f0 = A[k] * u[k] + d01 * v[k], f1 = d01 * u[k] + A[2 * n + k] * v[k];
    // Half of the stencil is stored: the neighbours ahead are multiplied by the coefficients of this node, those behind by
    // their own coefficients, transposed.
    auto forward = [&](int plane, bool exists, long to) EF_LAMBDA {
      if (!exists) return;
      const float *c = A + plane * n + k, p = u[k + to], q = v[k + to];
      f0 += c[0] * p + c[n] * q;
      f1 += c[2 * n] * p + c[3 * n] * q;
    };
    auto backward = [&](int plane, bool exists, long from) EF_LAMBDA {
      if (!exists) return;
      const float *c = A + plane * n + k + from, p = u[k + from], q = v[k + from];
      f0 += c[0] * p + c[2 * n] * q;
      f1 += c[n] * p + c[3 * n] * q;
    };
    const bool left = i > 0, right = i < n1 - 1, above = j > 0, below = j < n0 - 1;
    forward(kEast, right, 1);
    forward(kSouthWest, below && left, n1 - 1);
    forward(kSouth, below, n1);
    forward(kSouthEast, below && right, n1 + 1);
    backward(kEast, left, -1);
    backward(kSouthWest, above && right, -(n1 - 1));
    backward(kSouth, above, -n1);
    backward(kSouthEast, above && left, -(n1 + 1));
    out(b, k, f0, f1, before);
  }
};

// -------------------------------------------------------------------------------------------------- transfer

// Transfers of a batch; `of` gives that of one member.
struct BatchTransfer {
  Transfer<float> first;
  long regular, irregular;  // values a member
  EF_HD Transfer<float> of(int b) const {
    Transfer<float> t = first;
    t.regular += regular * b;
    t.irregular += irregular * b;
    return t;
  }
};

struct RestrictCells {
  BatchTransfer transfer;
  const float* fine;
  EF_HD CornerForces<float> operator()(int b, int J, int I) const {
    const Transfer<float> P = transfer.of(b);
    const int nf = P.a1.n_fine, ld = padded(P.a1.n_coarse - 1);
    const long n = long(P.a0.n_fine) * nf;
    const float* f = fine + 2 * n * b;
    if (J >= P.a0.regular || I >= P.a1.regular) return restrict_irregular(P, J, I, f);
    const float *u = f + long(2 * J) * nf + 2 * I, *q = P.regular + long(J) * kNodeWeights * ld + I;
    return restrict_regular(P.place0[2 * J + 1], P.place1[2 * I + 1], corners_at(u, nf), corners_at(u + n, nf),
                            [&](int w) EF_LAMBDA { return q[long(w) * ld]; });
  }
};

// One index for each coarse cell, which sets the fine nodes that the cell owns.
struct ProlongBody {
  BatchTransfer transfer;
  const float* coarse;
  float* fine;
  const uint8_t* fixed;
  EF_HD void operator()(int b, long k) const {
    const Transfer<float> P = transfer.of(b);
    const int nf = P.a1.n_fine, nc = P.a1.n_coarse, ld = padded(nc - 1), J = row_of(k, nc - 1), I = column_of(k, nc - 1);
    const long n = long(P.a0.n_fine) * nf, m = long(P.a0.n_coarse) * nc;
    const float* c = coarse + 2 * m * b;
    float* f = fine + 2 * n * b;
    auto put = [&](long at, float value) EF_LAMBDA { f[at] = fixed[at] ? 0.f : value; };
    if (J >= P.a0.regular || I >= P.a1.regular) return prolong_irregular(P, J, I, c, put);
    const Corners<float> u = corners_at(c + long(J) * nc + I, nc), v = corners_at(c + m + long(J) * nc + I, nc);
    Corners<float> to[2];
    EF_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float* q = P.regular + (long(J) * kNodeWeights + kCellDofs * e) * ld + I;
      to[e] = prolong_regular(P.place0[2 * J + 1], P.place1[2 * I + 1], e ? v : u, u, v,
                              [&](int w) EF_LAMBDA { return q[long(w) * ld]; });
    }
    const uint8_t* held = fixed + long(2 * J) * nf + 2 * I;
    float* o = f + long(2 * J) * nf + 2 * I;
    const uint8_t h[8] = {held[0], held[1], held[nf], held[nf + 1], held[n], held[n + 1], held[n + nf], held[n + nf + 1]};
    EF_UNROLL
    for (int e = 0; e < 2; ++e) {
      o[e * n] = h[4 * e] ? 0.f : to[e].a, o[e * n + 1] = h[4 * e + 1] ? 0.f : to[e].b;
      o[e * n + nf] = h[4 * e + 2] ? 0.f : to[e].c, o[e * n + nf + 1] = h[4 * e + 3] ? 0.f : to[e].d;
    }
  }
};

// ----------------------------------------------------------------------------------------------- the coarsest

// Products with the inverse in two kernels: `kParts` indices share a row, then their partial sums are added.
struct DenseProduct {
  static constexpr int kParts = 8;
  long n;
  const double* inverse;
  const float* r;
  double* work;
  EF_HD void operator()(int b, long k) const {
    const int column = column_of(k, int(n)), part = row_of(k, int(n));
    const double* a = inverse + n * n * b + column;
    double sum = 0;
    for (long i = part; i < n; i += kParts) sum += a[i * n] * r[n * b + i];
    work[n * kParts * b + k] = sum;
  }
};

struct DenseSum {
  long n;
  const double* work;
  float* x;
  EF_HD void operator()(int b, long k) const {
    double sum = 0;
    EF_UNROLL
    for (int part = 0; part < DenseProduct::kParts; ++part)
      sum += work[(n * b * DenseProduct::kParts) + part * n + k];
    x[n * b + k] = float(sum);
  }
};

struct BandedSolve {
  Banded shape;
  const double* band;
  double* work;
  const float* r;
  float* x;
  EF_HD void operator()(int b, long) const {
    const size_t n = shape.size();
    double* w = work + n * b;
    for (size_t k = 0; k < n; ++k) w[shape.number(k)] = r[n * b + k];
    shape.solve(band + shape.entries() * b, w);
    for (size_t k = 0; k < n; ++k) x[n * b + k] = float(w[shape.number(k)]);
  }
};

// ------------------------------------------------------------------------------------- around the V-cycle

// The fixed dof that is kept out of the hierarchy, or -1, and the displacement that the body takes without it: 2N values, one
// at the dof, or a translation.
struct Deflation {
  long dof;
  Fields<const double> mode;  // data may be null
  double translation[2];
  EF_HD double at(int b, long i, long n) const { return mode.data ? mode.of(b)[i] : translation[i >= n]; }
};

// Norm of the residual, and its net force along the mode of the deflated dof.
struct LoadTerm {
  const double* r;
  const uint8_t* fixed;  // the deflated dof included
  long n;
  Deflation deflation;
  EF_HD void operator()(int b, long i, double* sum) const {
    if (fixed[i]) return;
    const double v = r[2 * n * b + i];
    sum[0] += v * v;
    if (deflation.dof >= 0) sum[1] += deflation.at(b, i, n) * v;
  }
};

struct LoadSums {
  double *scale, *net;
  EF_HD void operator()(int b, const double* sum) const {
    scale[b] = sum[0] > 0 ? std::sqrt(sum[0]) : 1;
    net[b] = sum[1];
  }
};

// The scaled residual in single precision, with the reaction at the deflated dof that balances it.
struct LowerBody {
  const double* r;
  const uint8_t* fixed;
  long n;
  Deflation deflation;
  const double *scale, *net;
  float* out;
  EF_HD void operator()(int b, long k) const {
    const long at = 2 * n * b + k;
    const double v = k == deflation.dof ? -net[b] : fixed[k] ? 0.0 : r[at];
    out[at] = float(v / scale[b]);
  }
};

struct RaiseBody {
  const float* x;
  const uint8_t* fixed;
  long n;
  Deflation deflation;
  const double *scale, *modulus;
  double* z;
  EF_HD void operator()(int b, long k) const {
    const float* xb = x + 2 * n * b;
    const double v = deflation.dof < 0 ? xb[k] : xb[k] - xb[deflation.dof] * deflation.at(b, k, n);
    z[2 * n * b + k] = fixed[k] ? 0 : v * (scale[b] / modulus[b]);
  }
};

// ------------------------------------------------------------------------------------------------- the cycle

// One level as kernels see it; the pointers are those of member 0.
struct LevelView {
  int n0, n1;
  const uint8_t* fixed;
  float *x, *d, *r;
  double* lmax;
  Lanczos* lanczos;
  float* residual;          // scratch of the set-up
  const float* matrix;      // stored stencil; null on the finest level
  GridForm<float> form;     // of the finest level
  const float *x32, *shift32;
  Patch<float> patch;
  long special_count;
  BatchTransfer transfer;   // towards the next coarser level
  EF_HD long nodes() const { return long(n0) * n1; }
};

struct CoarsestView {
  Banded shape;
  bool dense;
  const double *band, *inverse;
  double* work;
};

// The steps of a smoother for a largest eigenvalue of one.
struct Smoother {
  static constexpr int kMost = 16;
  int count;
  float momentum[kMost], gain[kMost];
};

// d = a d + b / lmax (patches) r, y += d; or d = y = b / lmax (patches) r first.
EF_ANY_QUEUE
template <class Queue>
EF_HD void smoother_step(const Queue& queue, long batch, const LevelView& L, const float* r, const Update& out) {
  queue.template gather<float>(batch, L.n0, L.n1, PatchCells{L.patch, L.special_count, r}, out);
}

// r -= A d; y += d if there is a y.
EF_ANY_QUEUE
template <class Queue>
EF_HD void residual_minus_product(const Queue& queue, long batch, const LevelView& L, float* y) {
  const Residual out{L.r, L.nodes(), L.d, L.matrix ? nullptr : L.shift32, L.fixed, y};
  if (L.matrix)
    queue.each(batch, L.nodes(), StencilBody<Residual>{L.n0, L.n1, L.matrix, L.d, out});
  else
    launch_force<float>(queue, L.form, batch, Fields<const float>{L.x32, L.nodes()}, L.d, out);
}

// x = smoothing of r from zero; r becomes the residual of x.
EF_ANY_QUEUE
template <class Queue>
EF_HD void presmooth(const Queue& queue, long batch, const LevelView& L, const Smoother& s) {
  for (int k = 0; k < s.count; ++k) {
    smoother_step(queue, batch, L, L.r, Update{L.d, L.x, L.nodes(), k == 0, s.momentum[k], s.gain[k], L.lmax});
    residual_minus_product(queue, batch, L, nullptr);
  }
}

// Right-hand side of the coarse level from the residual.
EF_ANY_QUEUE
template <class Queue>
EF_HD void restrict(const Queue& queue, long batch, const LevelView& L, const LevelView& C) {
  queue.template gather<float>(batch, C.n0, C.n1, RestrictCells{L.transfer, L.r},
                               StoreShifted<float>{C.r, C.nodes(), nullptr, nullptr, C.fixed});
}

EF_ANY_QUEUE
template <class Queue>
EF_HD void coarse_solve(const Queue& queue, long batch, const CoarsestView& K, const LevelView& L) {
  const long n = long(K.shape.size());
  if (K.dense) {
    queue.each(batch, n * DenseProduct::kParts, DenseProduct{n, K.inverse, L.r, K.work});
    queue.each(batch, n, DenseSum{n, K.work, L.x});
  } else {
    queue.each(batch, 1, BandedSolve{K.shape, K.band, K.work, L.r, L.x});
  }
}

// Correction d from the solution of the coarse level.
EF_ANY_QUEUE
template <class Queue>
EF_HD void prolong(const Queue& queue, long batch, const LevelView& L, const LevelView& C) {
  queue.each(batch, long(C.n0 - 1) * (C.n1 - 1), ProlongBody{L.transfer, C.x, L.d, L.fixed});
}

// x = x + d, smoothed.
EF_ANY_QUEUE
template <class Queue>
EF_HD void postsmooth(const Queue& queue, long batch, const LevelView& L, const Smoother& s) {
  for (int k = 0; k < s.count; ++k) {
    residual_minus_product(queue, batch, L, k == 0 ? L.x : nullptr);
    smoother_step(queue, batch, L, L.r, Update{L.d, L.x, L.nodes(), false, s.momentum[k], s.gain[k], L.lmax});
  }
}

// The small levels at the end of a hierarchy, where a launch would take longer than the work: for each batch member one
// block of threads runs them together. They are few enough to be handed to a kernel by value.
struct SmallLevels {
  static constexpr int kMost = 6;
  static constexpr long kNodes = 1024;  // of the finest of them: one a thread
  int count;
  long batch;
  LevelView level[kMost];
  CoarsestView coarsest;
  Smoother smoother;
};

struct SmallCycle {
  SmallLevels levels;
  EF_ANY_QUEUE
  template <class Queue>
  EF_HD void operator()(Queue queue, int block) const {
    queue.member = block;
    const int last = levels.count - 1;
    for (int l = 0; l < last; ++l) {
      presmooth(queue, 1, levels.level[l], levels.smoother);
      restrict(queue, 1, levels.level[l], levels.level[l + 1]);
    }
    coarse_solve(queue, 1, levels.coarsest, levels.level[last]);
    for (int l = last - 1; l >= 0; --l) {
      prolong(queue, 1, levels.level[l], levels.level[l + 1]);
      postsmooth(queue, 1, levels.level[l], levels.smoother);
    }
  }
};

}  // namespace elastofast
