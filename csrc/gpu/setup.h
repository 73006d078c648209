// What runs when a hierarchy is set up on a device: Galerkin products, stencils, patches, eigenvalue bounds, inverse of the
// coarsest level.
#pragma once
#include "../lanczos.h"
#include "cycle.h"

namespace elastofast {

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

// Modulus and shift as the hierarchy uses them: divided by the mean modulus, in single precision.
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

// Static condensation with the cell matrices in memory, for the few coarse cells that are not of two by two fine cells.
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
      for (int p = 0; p < kCellDofs; ++p) {
        const int y = j + corner_row(p), z = i + corner_column(p);
        out[entry(p, p)] += shift.of(b)[component_of(p) * n + long(y) * n1 + z] * scale / cells_around(n0, n1, y, z);
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

// Galerkin matrix of a coarse cell and the weights of its interior nodes, one index a coarse cell: first the regular ones,
// then the others.
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
    double galerkin[kEntries], weights[kNodeWeights];
    auto load = [&](int cell) EF_LAMBDA {
      Packed out;
      fine.load(b, 2 * J + cell / 2, 2 * I + cell % 2, out.entries);
      return out;
    };
    coarsen_cell<double, 2, 2>(load, place0, place1, galerkin, weights);
    store(b, J, I, galerkin);
    const int ld = padded(a1.n_coarse - 1);
    float* out = regular + regular_size * b + long(J) * kNodeWeights * ld + I;
    EF_UNROLL
    for (int w = 0; w < kNodeWeights; ++w) out[long(w) * ld] = float(weights[w]);
  }
  EF_HD void other(int b, long k) const {
    const int m1 = a1.n_coarse - 1, rest = m1 - a1.regular;
    const long beside = long(a0.regular) * rest;
    const int J = int(k < beside ? k / rest : a0.regular + (k - beside) / m1);
    const int I = int(k < beside ? a1.regular + k % rest : (k - beside) % m1);
    double weights[kCellWeights] = {}, galerkin[kEntries];
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
    store(b, J, I, galerkin);
    float* out = irregular + irregular_size * b + kCellWeights * k;
    for (int w = 0; w < kCellWeights; ++w) out[w] = float(weights[w]);
  }
  EF_HD void store(int b, int J, int I, double* galerkin) const {
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

// Scales of the patches of the finest level: trace of the homogeneous over that of the actual 4-node block. Special patches
// are marked afterwards.
struct FinestScaleBody {
  int n0, n1;
  const float *x32, *shift32;
  float homogeneous;  // trace of the block of a homogeneous body
  float* scale;
  EF_HD void operator()(int b, long k) const {
    const int j = row_of(k, n1 - 1), i = column_of(k, n1 - 1);
    const long n = long(n0) * n1, cells = long(n0 - 1) * (n1 - 1), at = long(j) * n1 + i;
    auto sum = [&](const float* p) EF_LAMBDA {
      const Corners<float> c = corners_at(p, n1);
      return c.a + c.b + c.c + c.d;
    };
    float trace = 0.25f * homogeneous * sum(x32 + n * b + at);
    if (shift32)
      for (int c = 0; c < 2; ++c) trace += sum(shift32 + (2 * long(b) + c) * n + at);
    scale[cells * b + k] = std::abs(homogeneous / trace);  // the sign bit would mark a special patch, even that of a NaN
  }
};

// The same from a stored stencil.
struct StencilScaleBody {
  int n0, n1;
  const float* planes;
  float homogeneous;
  float* scale;
  EF_HD void operator()(int b, long k) const {
    const int j = row_of(k, n1 - 1), i = column_of(k, n1 - 1);
    const long n = long(n0) * n1, cells = long(n0 - 1) * (n1 - 1);
    const float* d = planes + kPlanes * n * b + long(j) * n1 + i;
    const Corners<float> u = corners_at(d, n1), v = corners_at(d + 2 * n, n1);
    scale[cells * b + k] = std::abs(homogeneous / (u.a + v.a + (u.b + v.b) + (u.c + v.c) + (u.d + v.d)));
  }
};

template <class Cells>
struct SpecialBody {
  Cells cells;
  const int* special;  // numbers of the cells with a special patch
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

struct LanczosResidual {
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

// The Lanczos steps for the largest eigenvalue of (smoother x matrix) on one level.
EF_ANY_QUEUE
template <class Queue>
EF_HD void lanczos_steps(const Queue& queue, long batch, const LevelView& L, double* room) {
  const long n = 2 * L.nodes();
  float* z = L.x;
  queue.each(batch, n, StartBody{L.residual, L.fixed, n, L.lanczos});
  for (int step = 0; step < Lanczos::kSteps; ++step) {
    smoother_step(queue, batch, L, L.residual, Update{z, z, L.nodes(), true, 0, 1, nullptr});
    queue.sum(batch, n, DotTerm{L.residual, z, n}, room, LanczosDirection{L.lanczos});
    queue.each(batch, n, DirectionBody{L.lanczos, z, L.d, L.r, n});
    residual_minus_product(queue, batch, L, nullptr);  // r = -A d
    queue.sum(batch, n, DotTerm{L.d, L.r, n}, room, LanczosStep{L.lanczos});
    queue.each(batch, n, LanczosResidual{L.lanczos, L.r, L.residual, n});
  }
}

struct SmallLanczos {
  SmallLevels levels;
  EF_ANY_QUEUE
  template <class Queue>
  EF_HD void operator()(Queue queue, int block) const {
    queue.member = int(block % levels.batch);
    lanczos_steps(queue, 1, levels.level[block / levels.batch], nullptr);
  }
};

// ----------------------------------------------------------------------------------------------- the coarsest

// Banded factorisation, one index for each member: for long coarsest levels, whose inverse would take too much memory.
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
      const int y = j - corner_row(corner), z = i - corner_column(corner);
      if (y < 0 || y >= n0 - 1 || z < 0 || z >= n1 - 1) continue;
      double cell[kEntries];
      cells.load(b, y, z, cell);
      for (int q = 0; q < kCellDofs; ++q)
        row[component_of(q) * n + long(y + corner_row(q)) * n1 + z + corner_column(q)] +=
            cell[entry(kCorners * c + corner, q)];
    }
  }
};

struct DiagonalTerm {
  const double* matrix;
  long size;
  EF_HD void operator()(int b, long k, double* sum) const { sum[0] += matrix[size * size * b + k * (size + 1)]; }
};

// Stores the mean diagonal behind the room for one matrix row that each member has.
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
    const double *r = row + (size + 1) * b, least = kLeastPivot * r[size];
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

template <class Cells>
struct CoarsestInverse {
  DenseBody<Cells> assemble;
  double regularization, *row;
  EF_ANY_QUEUE
  template <class Queue>
  EF_HD void operator()(Queue queue, int block) const {
    const long size = 2 * long(assemble.n0) * assemble.n1;
    double* matrix = assemble.matrix;
    queue.member = block;
    queue.each(1, size, assemble);
    queue.sum(1, size, DiagonalTerm{matrix, size}, nullptr, MeanDiagonal{row, size});
    queue.each(1, size, DiagonalBody{matrix, row, size, regularization});
    for (long pivot = 0; pivot < size; ++pivot) {
      queue.each(1, size, PivotBody{matrix, row, size, pivot});
      queue.each(1, size * SweepBody::kRows, SweepBody{matrix, row, size, pivot});
    }
    queue.each(1, size * size, MirrorBody{matrix, size});
  }
};

}  // namespace elastofast
