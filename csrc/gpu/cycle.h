// Bodies of multigrid on a device. Fields of a level are float, two planes of nodes a batch member; stored stencils are
// kPlanes planes of nodes.
#pragma once
#include "../coarsest.h"
#include "../lanczos.h"
#include "contractions.h"

namespace elastofast {

// ---------------------------------------------------------------------------------------------- inner products

struct ProductTerm {
  const double *a, *b;
  long n;
  EF_HD void operator()(int m, long k, double* sum) const { sum[0] += a[n * m + k] * b[n * m + k]; }
};

struct StoreSum {
  double* out;
  EF_HD void operator()(int m, const double* sum) const { out[m] = sum[0]; }
};

// ------------------------------------------------------------------------------------------------- smoothing

// d = a d + b / lmax v, y += d; or d = y = b / lmax v first. For sums (u, v) of patches at a node.
struct Update {
  float *d, *y;
  long n;
  bool first;
  float a, b;
  const double* lmax;  // of each member, or null for one
  struct Kept {
    float d0, d1, y0, y1, gain;
  };
  EF_HD Kept keep(int member, long node) const {
    const long at = 2 * n * member + node;
    const float gain = lmax ? b / float(lmax[member]) : b;
    if (first) return {0, 0, 0, 0, gain};
    return {a * d[at], a * d[at + n], y[at], y[at + n], gain};
  }
  EF_HD void operator()(int member, long node, float u, float v, const Kept& k) const {
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
  struct Kept {
    float r0, r1, y0, y1;
    bool fixed0, fixed1;
  };
  EF_HD Kept keep(int b, long node) const {
    const long at = 2 * n * b + node;
    Kept k{r[at], r[at + n], 0, 0, fixed[node] != 0, fixed[node + n] != 0};
    if (shift) k.r0 -= shift[at] * d[at], k.r1 -= shift[at + n] * d[at + n];
    if (y) k.y0 = y[at] + d[at], k.y1 = y[at + n] + d[at + n];
    return k;
  }
  EF_HD void operator()(int b, long node, float u, float v, const Kept& k) const {
    const long at = 2 * n * b + node;
    r[at] = k.fixed0 ? 0.f : k.r0 - u;
    r[at + n] = k.fixed1 ? 0.f : k.r1 - v;
    if (y) y[at] = k.y0, y[at + n] = k.y1;
  }
};

// Scales of a patch are positive; a special cell has its number in their place, marked by the sign bit.
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
    return number < 0 ? patch_solve(patch.p, patch.q, patch.r, s, cu, cv)
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
    const auto kept = out.keep(b, k);
    const float *A = planes + kPlanes * n * b, *u = x + 2 * n * b, *v = u + n;
    const float d01 = A[n + k];
    float f0 = A[k] * u[k] + d01 * v[k], f1 = d01 * u[k] + A[2 * n + k] * v[k];
    // the neighbour at `to` by the coefficients of this node, the one at `from` by its own, transposed
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
    out(b, k, f0, f1, kept);
  }
};

// -------------------------------------------------------------------------------------------------- transfer

// The transfer of one batch member.
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
    const float *u = f + long(2 * J) * nf + 2 * I, *q = P.regular + long(J) * 16 * ld + I;
    return restrict_regular(P.place0[2 * J + 1], P.place1[2 * I + 1], corners_at(u, nf), corners_at(u + n, nf),
                            [&](int w) EF_LAMBDA { return q[long(w) * ld]; });
  }
};

// One index a coarse cell, for the fine nodes that it owns.
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
      const float* q = P.regular + (long(J) * 16 + 8 * e) * ld + I;
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

// ---------------------------------------------------------------------------------------------------- set-up

struct MeanModulus {
  double* modulus;
  long n;
  EF_HD void operator()(int b, const double* sum) const { modulus[b] = sum[0] / double(n); }
};

struct ModulusTerm {
  Fields<const double> x;
  EF_HD void operator()(int b, long i, double* sum) const { sum[0] += x.of(b)[i]; }
};

// Modulus and shift of the hierarchy: over the mean modulus, in single precision.
struct ScaleBody {
  Fields<const double> x, shift;
  const double* modulus;
  long n;
  float *x32, *shift32;
  EF_HD void operator()(int b, long k) const {
    x32[n * b + k] = float(x.of(b)[k] / modulus[b]);
    if (shift.data)
      for (int c = 0; c < 2; ++c) shift32[2 * n * b + c * n + k] = float(shift.of(b)[c * n + k] / modulus[b]);
  }
};

// Static condensation with the cell matrices in memory, for the few cells that are not two by two.
template <int W0, int W1>
EF_CALL void coarsen_stored(const Packed* cells, const double* place0, const double* place1, double* galerkin,
                            double* weights) {
  coarsen_cell<double, W0, W1>([&](int k) EF_LAMBDA { return cells[k]; }, place0, place1, galerkin, weights);
}

// Cell matrices of the finest level, made when they are needed.
template <bool kReduced>
struct FinestCells {
  CellLaw<double> law;
  int n0, n1;
  Fields<const double> x, shift;
  const double* modulus;
  const uint8_t* fixed;
  EF_HD void load(int b, int j, int i, double* out) const {
    const long n = long(n0) * n1, at = long(j) * n1 + i;
    const double scale = 1 / modulus[b];
    Corners<double> c = corners_at(x.of(b) + at, n1);
    c.a *= scale, c.b *= scale, c.c *= scale, c.d *= scale;
    packed_cell<kReduced>(law, c, out);
    if (shift.data)
      EF_UNROLL
      for (int p = 0; p < 8; ++p) {
        const int y = j + p % 4 / 2, z = i + p % 2;
        out[entry(p, p)] += shift.of(b)[p / 4 * n + long(y) * n1 + z] * scale / cells_around(n0, n1, y, z);
      }
    clear_fixed(fixed, n, n1, at, out);
  }
};

// Stored cell matrices of a coarser level: kEntries planes of cells.
struct StoredCells {
  int m0, m1;
  double* planes;
  EF_HD double* plane(int b, int e) const { return planes + (long(b) * kEntries + e) * m0 * m1; }
  EF_HD void load(int b, int j, int i, double* out) const {
    EF_UNROLL
    for (int e = 0; e < kEntries; ++e) out[e] = plane(b, e)[long(j) * m1 + i];
  }
  EF_HD void store(int b, int j, int i, const double* in) const {
    EF_UNROLL
    for (int e = 0; e < kEntries; ++e) plane(b, e)[long(j) * m1 + i] = in[e];
  }
};

// What the coarse cells leave of the fine cells in them: first the regular ones, then the others.
template <class Fine>
struct CoarsenBody {
  Fine fine;
  AxisView a0, a1;
  StoredCells coarse;
  const uint8_t* fixed;  // of the coarse level
  float *regular, *irregular;
  long regular_size, irregular_size;  // values a member

  EF_HD void operator()(int b, long k) const {
    const long count = long(a0.regular) * a1.regular;
    k < count ? two_by_two(b, row_of(k, a1.regular), column_of(k, a1.regular)) : other(b, k - count);
  }
  EF_HD void two_by_two(int b, int J, int I) const {
    const double place0[2] = {0, a0.place[2 * J + 1]}, place1[2] = {0, a1.place[2 * I + 1]};
    double galerkin[kEntries], weights[16];
    auto load = [&](int cell) EF_LAMBDA {
      Packed out;
      fine.load(b, 2 * J + cell / 2, 2 * I + cell % 2, out.entries);
      return out;
    };
    coarsen_cell<double, 2, 2>(load, place0, place1, galerkin, weights);
    keep(b, J, I, galerkin);
    const int ld = padded(a1.n_coarse - 1);
    float* out = regular + regular_size * b + long(J) * 16 * ld + I;
    EF_UNROLL
    for (int w = 0; w < 16; ++w) out[long(w) * ld] = float(weights[w]);
  }
  EF_HD void other(int b, long k) const {
    const int m1 = a1.n_coarse - 1, rest = m1 - a1.regular;
    const long beside = long(a0.regular) * rest;
    const int J = int(k < beside ? k / rest : a0.regular + (k - beside) / m1);
    const int I = int(k < beside ? a1.regular + k % rest : (k - beside) % m1);
    double weights[64] = {}, galerkin[kEntries];
    unroll(std::make_integer_sequence<int, 9>{}, [&](auto w) EF_LAMBDA {
      constexpr int W0 = decltype(w)::value / 3 + 1, W1 = decltype(w)::value % 3 + 1;
      if (a0.width[J] != W0 || a1.width[I] != W1) return;
      Packed cells[W0 * W1];
      double place0[3] = {}, place1[3] = {};
      for (int c = 0; c < W0 * W1; ++c) fine.load(b, a0.first[J] + c / W1, a1.first[I] + c % W1, cells[c].entries);
      for (int p = 1; p < W0; ++p) place0[p] = a0.place[a0.first[J] + p];
      for (int q = 1; q < W1; ++q) place1[q] = a1.place[a1.first[I] + q];
      coarsen_stored<W0, W1>(cells, place0, place1, galerkin, weights);
    });
    keep(b, J, I, galerkin);
    float* out = irregular + irregular_size * b + 64 * k;
    for (int w = 0; w < 64; ++w) out[w] = float(weights[w]);
  }
  EF_HD void keep(int b, int J, int I, double* galerkin) const {
    const int n1 = a1.n_coarse;
    clear_fixed(fixed, long(a0.n_coarse) * n1, n1, long(J) * n1 + I, galerkin);
    coarse.store(b, J, I, galerkin);
  }
};

// Half stencil of assembled cell matrices, with a one on the diagonal of fixed dofs, whose residual is zero.
struct AssembleBody {
  StoredCells cells;
  float* planes;
  EF_HD void operator()(int b, long k) const {
    const int n1 = cells.m1 + 1, j = row_of(k, n1), i = column_of(k, n1);
    const long n = long(cells.m0 + 1) * n1;
    float sums[kPlanes] = {};
    each_stencil_entry([&](int p, int q, int row, int plane, int column) EF_LAMBDA {
      const int y = j - row, z = i - column;
      if (y >= 0 && y < cells.m0 && z >= 0 && z < cells.m1)
        sums[plane] += float(cells.plane(b, entry(p, q))[long(y) * cells.m1 + z]);
    });
    for (int c = 0; c < 3; c += 2)
      if (sums[c] == 0) sums[c] = 1;
    for (int c = 0; c < kPlanes; ++c) planes[(long(b) * kPlanes + c) * n + k] = sums[c];
  }
};

// One over the mean stiffness of the 4-node blocks of the finest level; special cells come after.
struct FinestScaleBody {
  int n0, n1;
  const float *x32, *shift32;
  float whole;  // trace of the homogeneous block
  float* scale;
  EF_HD void operator()(int b, long k) const {
    const int j = row_of(k, n1 - 1), i = column_of(k, n1 - 1);
    const long n = long(n0) * n1, cells = long(n0 - 1) * (n1 - 1), at = long(j) * n1 + i;
    auto sum = [&](const float* p) EF_LAMBDA {
      const Corners<float> c = corners_at(p, n1);
      return c.a + c.b + c.c + c.d;
    };
    float trace = 0.25f * whole * sum(x32 + n * b + at);
    if (shift32)
      for (int c = 0; c < 2; ++c) trace += sum(shift32 + (2 * long(b) + c) * n + at);
    scale[cells * b + k] = std::abs(whole / trace);  // a sign would mark a special cell, also that of NaN
  }
};

// The same from a stored stencil.
struct StencilScaleBody {
  int n0, n1;
  const float* planes;
  float whole;
  float* scale;
  EF_HD void operator()(int b, long k) const {
    const int j = row_of(k, n1 - 1), i = column_of(k, n1 - 1);
    const long n = long(n0) * n1, cells = long(n0 - 1) * (n1 - 1);
    const float* d = planes + kPlanes * n * b + long(j) * n1 + i;
    const Corners<float> u = corners_at(d, n1), v = corners_at(d + 2 * n, n1);
    scale[cells * b + k] = std::abs(whole / (u.a + v.a + (u.b + v.b) + (u.c + v.c) + (u.d + v.d)));
  }
};

template <class Cells>
struct SpecialBody {
  Cells cells;
  const int* special;  // numbers of the special cells
  int m0, m1;
  long count;
  float *scale, *inverse;
  EF_HD void operator()(int b, long k) const {
    const int j = row_of(special[k], m1), i = column_of(special[k], m1);
    double block[kEntries];
    special_inverse(j, i, m0, m1, [&](int y, int z, double* out) EF_LAMBDA { cells.load(b, y, z, out); }, block);
    EF_UNROLL
    for (int e = 0; e < kEntries; ++e) inverse[(count * b + k) * kEntries + e] = float(block[e]);
    scale[long(m0) * m1 * b + special[k]] = special_mark(k);
  }
};

// ---------------------------------------------------------------------------------------- largest eigenvalue

struct StartBody {
  float* residual;
  const uint8_t* fixed;
  long n;  // dofs
  Lanczos* state;
  EF_HD void operator()(int b, long k) const {
    residual[n * b + k] = fixed[k] ? 0.f : LanczosStart::at(uint32_t(k));
    if (k == 0) state[b].start();
  }
};

struct DotTerm {
  const float *p, *q;
  long n;
  EF_HD void operator()(int b, long i, double* sum) const { sum[0] += double(p[n * b + i]) * double(q[n * b + i]); }
};

struct LanczosDirection {
  Lanczos* state;
  EF_HD void operator()(int b, const double* sum) const { state[b].direction(sum[0]); }
};

struct LanczosStep {
  Lanczos* state;
  EF_HD void operator()(int b, const double* sum) const { state[b].step(-sum[0]); }
};

// d = z + beta d, and room for its product: r = 0.
struct DirectionBody {
  const Lanczos* state;
  const float* z;
  float *d, *r;
  long n;
  EF_HD void operator()(int b, long k) const {
    const long at = n * b + k;
    d[at] = z[at] + (state[b].steps ? float(state[b].beta) * d[at] : 0.f);
    r[at] = 0;
  }
};

struct DescendBody {
  const Lanczos* state;
  const float* r;
  float* residual;
  long n;
  EF_HD void operator()(int b, long k) const { residual[n * b + k] += float(state[b].alpha) * r[n * b + k]; }
};

struct LargestBody {
  const Lanczos* state;
  double* lmax;
  EF_HD void operator()(int, long k) const { lmax[k] = state[k].largest(); }
};

// ----------------------------------------------------------------------------------------------- the coarsest

// By one index a member, with Banded: for long coarsest levels, whose inverse would take too much memory.
template <class Cells>
struct FactorBody {
  Cells cells;
  Banded shape;
  double regularization;
  double* band;
  EF_HD void operator()(int b, long) const {
    double matrix[kEntries];
    int last_j = -1, last_i = -1;
    shape.factor(
        [&](int j, int i, int e) {
          if (j != last_j || i != last_i) cells.load(b, last_j = j, last_i = i, matrix);
          return matrix[e];
        },
        regularization, band + shape.entries() * b);
  }
};

// Row k of the assembled coarsest matrix, dofs in field order; fixed dofs get a diagonal later.
template <class Cells>
struct DenseBody {
  Cells cells;
  int n0, n1;
  double* matrix;
  EF_HD void operator()(int b, long k) const {
    const long n = long(n0) * n1, size = 2 * n;
    const int c = int(k / n), j = row_of(k % n, n1), i = column_of(k % n, n1);
    double* row = matrix + (size * b + k) * size;
    for (long q = 0; q < size; ++q) row[q] = 0;
    for (int corner = 0; corner < 4; ++corner) {  // the node's place in a cell around it
      const int y = j - corner / 2, z = i - corner % 2;
      if (y < 0 || y >= n0 - 1 || z < 0 || z >= n1 - 1) continue;
      double cell[kEntries];
      cells.load(b, y, z, cell);
      for (int q = 0; q < 8; ++q)
        row[q / 4 * n + long(y + q % 4 / 2) * n1 + z + q % 2] += cell[entry(4 * c + corner, q)];
    }
  }
};

struct DiagonalTerm {
  const double* matrix;
  long size;
  EF_HD void operator()(int b, long k, double* sum) const { sum[0] += matrix[size * size * b + k * (size + 1)]; }
};

// Room for one row a member, and the mean diagonal.
struct MeanDiagonal {
  double* row;
  long size;
  EF_HD void operator()(int b, const double* sum) const { row[(size + 1) * b + size] = sum[0] / double(size); }
};

// Fixed dofs get the mean diagonal, all of them a little more where the matrix may be singular; see `Banded::factor`.
struct DiagonalBody {
  double* matrix;
  const double* row;
  long size;
  double regularization;
  EF_HD void operator()(int b, long k) const {
    const double mean = row[(size + 1) * b + size];
    double& d = matrix[size * size * b + k * (size + 1)];
    d = (d == 0 ? (mean > 0 ? mean : 1) : d) + regularization * mean;
  }
};

// Inverse of a symmetric positive definite matrix in place by sweeps (Goodnight, Amer. Statist. 33, 1979): the pivot's row
// is copied first, so that all entries can change at once. What lies below the diagonal is not kept up to date.
struct PivotBody {
  const double* matrix;
  double* row;
  long size, pivot;
  EF_HD void operator()(int b, long k) const {
    const double* a = matrix + size * size * b;
    row[(size + 1) * b + k] = k < pivot ? a[k * size + pivot] : a[pivot * size + k];
  }
};

struct SweepBody {
  static constexpr int kRows = 8;  // indices that share a column
  double* matrix;
  const double* row;
  long size, pivot;
  EF_HD void operator()(int b, long k) const {
    const int q = column_of(k, int(size));
    const double *r = row + (size + 1) * b, least = 1e-14 * r[size];
    const double d = 1 / (r[pivot] > least ? r[pivot] : least), rq = r[q] * d;
    double* a = matrix + size * size * b + q;
    constexpr int kAtOnce = 4;  // read before any is written: all these may be on their way at the same time
    for (long first = row_of(k, int(size)); first <= q; first += kAtOnce * kRows) {
      double e[kAtOnce];
      EF_UNROLL
      for (int s = 0; s < kAtOnce; ++s) {
        const long p = first + s * kRows;
        e[s] = p > q ? 0 : p != pivot && q != pivot ? a[p * size] - r[p] * rq : p == q ? -d : p == pivot ? rq : r[p] * d;
      }
      EF_UNROLL
      for (int s = 0; s < kAtOnce; ++s)
        if (first + s * kRows <= q) a[(first + s * kRows) * size] = e[s];
    }
  }
};

// Ends the sweeps: changes the sign and fills in what lies below the diagonal.
struct MirrorBody {
  double* matrix;
  long size;
  EF_HD void operator()(int b, long k) const {
    const long p = row_of(k, int(size)), q = column_of(k, int(size));
    if (p > q) return;
    double* a = matrix + size * size * b;
    a[q * size + p] = a[p * size + q] = -a[p * size + q];
  }
};

// Products with the inverse in two parts: `kParts` indices share a row.
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

// The dof that is kept out of the hierarchy, or -1, and the motion that it holds: 2N values, or a translation.
struct Pin {
  long dof;
  Fields<const double> mode;  // data may be null
  double translation[2];
  EF_HD double at(int b, long i, long n) const { return mode.data ? mode.of(b)[i] : translation[i >= n]; }
};

// Norm of the residual, and its net force along the motion that the pin holds.
struct LoadTerm {
  const double* r;
  const uint8_t* fixed;  // the pin included
  long n;
  Pin pin;
  EF_HD void operator()(int b, long i, double* sum) const {
    if (fixed[i]) return;
    const double v = r[2 * n * b + i];
    sum[0] += v * v;
    if (pin.dof >= 0) sum[1] += pin.at(b, i, n) * v;
  }
};

struct LoadSums {
  double *scale, *net;
  EF_HD void operator()(int b, const double* sum) const {
    scale[b] = sum[0] > 0 ? std::sqrt(sum[0]) : 1;
    net[b] = sum[1];
  }
};

// The scaled residual in single precision, with a reaction at the pin that balances it.
struct LowerBody {
  const double* r;
  const uint8_t* fixed;
  long n;
  Pin pin;
  const double *scale, *net;
  float* out;
  EF_HD void operator()(int b, long k) const {
    const long at = 2 * n * b + k;
    const double v = k == pin.dof ? -net[b] : fixed[k] ? 0.0 : r[at];
    out[at] = float(v / scale[b]);
  }
};

struct RaiseBody {
  const float* x;
  const uint8_t* fixed;
  long n;
  Pin pin;
  const double *scale, *modulus;
  double* z;
  EF_HD void operator()(int b, long k) const {
    const float* xb = x + 2 * n * b;
    const double v = pin.dof < 0 ? xb[k] : xb[k] - xb[pin.dof] * pin.at(b, k, n);
    z[2 * n * b + k] = fixed[k] ? 0 : v * (scale[b] / modulus[b]);
  }
};

}  // namespace elastofast
