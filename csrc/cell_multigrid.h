// Mathematics of multigrid on one cell: its matrix, the patch smoother, static condensation, interpolation. Shared by
// CPU and CUDA; V is one number or a vector of them.
#pragma once
#include <cstdint>

#include "cell.h"
#include "numbering.h"

namespace elastofast {

// Calls put(integral_constant p, integral_constant q, value) for the packed entries of one cell's stiffness matrix.
template <bool kReduced, class V, class T, class Put>
EF_HD void cell_matrix(const CellLaw<T>& law, const StiffnessFactors<V>& f, Put put) {
  unroll(std::make_integer_sequence<int, kCellDofs * kCellDofs>{}, [&](auto e) EF_LAMBDA {
    constexpr int P = decltype(e)::value / kCellDofs, Q = decltype(e)::value % kCellDofs;
    if constexpr (P <= Q)
      put(std::integral_constant<int, P>{}, std::integral_constant<int, Q>{},
          stiffness_entry<kReduced, component_of(P), corner_row(P), corner_column(P), component_of(Q), corner_row(Q),
                          corner_column(Q)>(law, f));
  });
}

// The entries of one packed cell matrix.
struct Packed {
  double entries[kEntries];
  EF_HD double operator()(int e) const { return entries[e]; }
};

// The assembled 4-node block of a cell, packed: fine(dj, di) gives the packed entries of the neighbour (dj, di) of the
// cell, exists says whether there is one.
template <class Exists, class Fine>
EF_HD void patch_block(Exists exists, Fine fine, double* block) {
  EF_UNROLL
  for (int e = 0; e < kEntries; ++e) block[e] = 0;
  unroll(std::make_integer_sequence<int, 9>{}, [&](auto k) EF_LAMBDA {  // so that only additions remain
    constexpr int dj = decltype(k)::value / 3 - 1, di = decltype(k)::value % 3 - 1;
    if (!exists(dj, di)) return;
    const auto entries = fine(dj, di);
    unroll(std::make_integer_sequence<int, kCellDofs * kCellDofs>{}, [&](auto e) EF_LAMBDA {
      constexpr int p = decltype(e)::value / kCellDofs, q = decltype(e)::value % kCellDofs;
      // only corners that the patch and this neighbour share contribute
      constexpr int ps = corner_row(p) - dj, pt = corner_column(p) - di, qs = corner_row(q) - dj, qt = corner_column(q) - di;
      if constexpr (p <= q && ps >= 0 && ps <= 1 && pt >= 0 && pt <= 1 && qs >= 0 && qs <= 1 && qt >= 0 && qt <= 1)
        block[entry(p, q)] +=
            entries(entry(kCorners * component_of(p) + 2 * ps + pt, kCorners * component_of(q) + 2 * qs + qt));
    });
  });
}

// Inverse of a symmetric positive definite matrix, packed, by symmetric sweeps.
template <class V, int N, class At>
EF_HD void sweep_inverse(At at) {
  EF_UNROLL
  for (int k = 0; k < N; ++k) {
    const V d = 1.0 / at(k, k);
    V row[N];
    EF_UNROLL
    for (int p = 0; p < N; ++p) row[p] = at(k, p);
    EF_UNROLL
    for (int p = 0; p < N; ++p) {
      if (p == k) continue;
      const V f = row[p] * d;
      EF_UNROLL
      for (int q = p; q < N; ++q)
        if (q != k) at(p, q) -= f * row[q];
      at(k, p) = f;
    }
    at(k, k) = -d;
  }
  EF_UNROLL
  for (int p = 0; p < N; ++p)
    EF_UNROLL
    for (int q = p; q < N; ++q) at(p, q) = -at(p, q);
}

// -------------------------------------------------------------------------------------------- patch smoother

// Patch smoother of a level (additive Schwarz): the sum of the inverses of the 4-node blocks of the matrix, one for each
// cell. Away from edges and fixed dofs a block is approximated by that of a homogeneous body with the same trace, whose
// inverse is block-diagonal in the modes of cell.h: 2 x 2 blocks for (u_s, v_t), (u_m, v_h), (u_h, v_m) and (u_t, v_s).
template <class T>
struct Blocks {
  T data[4][kBlockEntries<2>];  // see `element_smooth`
};
template <class T>
struct Patch {
  int n0, n1;
  Blocks<T> blocks;
  const T* scale;          // (n0-1, n1-1): traces of homogeneous over actual block; for a special patch 0 on the CPU,
                           // special_mark(number) on the GPU
  const int* special_row;  // CPU only: special patches (at edges, with fixed dofs) sorted by row: [n0] offsets
  const int* special_col;  // CPU only
  const T* special;        // inverses of the special patches: on the CPU all entries, column by column; on the GPU packed
};

// Inverse of the homogeneous block times `scale`, times the residual (u, v) at the corners.
template <class V, class T>
EF_HD CornerForces<V> patch_solve(const T (*blocks)[kBlockEntries<2>], V scale, const Corners<V>& u, const Corners<V>& v) {
  const V r[2][4] = {{u.a, u.b, u.c, u.d}, {v.a, v.b, v.c, v.d}};
  V z[2][4];
  element_smooth<2>(blocks, scale * T(0.25), r, z);
  return {{z[0][0], z[0][1], z[0][2], z[0][3]}, {z[1][0], z[1][1], z[1][2], z[1][3]}};
}

// Packed inverse of a special cell times the residual at its corners.
template <class T>
EF_HD CornerForces<T> special_solve(const T* inverse, const Corners<T>& u, const Corners<T>& v) {
  const T in[kCellDofs] = {u.a, u.b, u.c, u.d, v.a, v.b, v.c, v.d};
  T out[kCellDofs] = {};
  EF_UNROLL
  for (int p = 0; p < kCellDofs; ++p)
    EF_UNROLL
    for (int q = 0; q < kCellDofs; ++q) out[p] += inverse[entry(p, q)] * in[q];
  return {{out[0], out[1], out[2], out[3]}, {out[4], out[5], out[6], out[7]}};
}

// Packed cell matrix for the moduli at a cell's corners.
template <bool kReduced>
EF_HD void packed_cell(const CellLaw<double>& law, const Corners<double>& modulus, double* cell) {
  cell_matrix<kReduced>(law, stiffness_factors(moments(modulus)), [&](auto a, auto b, double v) EF_LAMBDA {
    cell[entry(decltype(a)::value, decltype(b)::value)] = v;
  });
}

// The same for a homogeneous body with modulus one.
EF_CALL void homogeneous_cell(const CellLaw<double>& law, bool reduced, double* cell) {
  const Corners<double> ones = {1, 1, 1, 1};
  reduced ? packed_cell<true>(law, ones, cell) : packed_cell<false>(law, ones, cell);
}

// Sets the blocks of a patch for a homogeneous body of such cells; returns the trace of the 4-node block.
template <class T>
EF_HD double patch_modes(const double* cell, Patch<T>& patch) {
  double block[kEntries];
  patch_block([](int, int) EF_LAMBDA { return true; },
              [&](int, int) EF_LAMBDA { return [=](int e) EF_LAMBDA { return cell[e]; }; }, block);
  const double mode[4][4] = {{.5, .5, .5, .5}, {-.5, -.5, .5, .5}, {-.5, .5, -.5, .5}, {.5, -.5, -.5, .5}};  // m s t h
  auto project = [&](int ca, int ma, int cb, int mb) EF_LAMBDA {
    double sum = 0;
    for (int a = 0; a < 4; ++a)
      for (int b = 0; b < 4; ++b) sum += mode[ma][a] * mode[mb][b] * block[entry(4 * ca + a, 4 * cb + b)];
    return sum;
  };
  // component, mode; component, mode; number of the block, and which of its rows comes first
  const int pairs[4][6] = {{0, 0, 1, 3, 1, 0}, {1, 0, 0, 3, 2, 1}, {0, 1, 1, 2, 0, 0}, {0, 2, 1, 1, 3, 0}};
  double trace = 0;
  for (int k = 0; k < 4; ++k) {
    const int* w = pairs[k];
    const double a = project(w[0], w[1], w[0], w[1]), b = project(w[0], w[1], w[2], w[3]),
                 c = project(w[2], w[3], w[2], w[3]), d = a * c - b * b;
    T* inverse = patch.blocks.data[w[4]];
    inverse[2 * w[5]] = T(c / d), inverse[1] = T(-b / d), inverse[2 - 2 * w[5]] = T(a / d);
    trace += a + c;
  }
  return trace;
}

// Packed inverse of the assembled 4-node block of cell (j, i) out of m0 x m1; load(j, i, out) gives a cell's matrix.
template <class Load>
EF_CALL void special_inverse(int j, int i, int m0, int m1, Load load, double* block) {
  auto exists = [&](int dj, int di) EF_LAMBDA {
    return j + dj >= 0 && j + dj < m0 && i + di >= 0 && i + di < m1;
  };
  auto fine = [&](int dj, int di) EF_LAMBDA {
    Packed cell;
    load(j + dj, i + di, cell.entries);
    return cell;
  };
  patch_block(exists, fine, block);
  double full[kCellDofs][kCellDofs];  // its upper triangle, where entries are found without arithmetic
  EF_UNROLL
  for (int p = 0; p < kCellDofs; ++p) {
    EF_UNROLL
    for (int q = p; q < kCellDofs; ++q) full[p][q] = block[entry(p, q)];
    if (full[p][p] == 0) full[p][p] = 1;  // fixed dofs, whose residual is zero
  }
  sweep_inverse<double, kCellDofs>([&](int p, int q) EF_LAMBDA -> double& { return p <= q ? full[p][q] : full[q][p]; });
  EF_UNROLL
  for (int p = 0; p < kCellDofs; ++p)
    EF_UNROLL
    for (int q = p; q < kCellDofs; ++q) block[entry(p, q)] = full[p][q];
}

// Removes the fixed dofs from the packed matrix of the cell whose first corner is node `corner`; n nodes in rows of n1.
EF_HD void clear_fixed(const uint8_t* fixed, long n, int n1, long corner, double* matrix) {
  EF_UNROLL
  for (int p = 0; p < kCellDofs; ++p)
    if (fixed[component_of(p) * n + corner + corner_row(p) * n1 + corner_column(p)])
      EF_UNROLL
      for (int q = 0; q < kCellDofs; ++q) matrix[entry(p, q)] = 0;
}

// -------------------------------------------------------------------------------------------------- transfer

// How one axis is coarsened: coarse cell c spans width[c] (1, 2 or 3) fine cells from fine node first[c] on. Fine node k lies
// at the fraction place[k] of the length of its coarse cell.
struct AxisView {
  int n_fine, n_coarse, regular;  // the first `regular` coarse cells are two fine cells wide
  const int *first, *width;
  const double* place;
};

// Transfer between two levels: interpolation is bilinear on the edges of coarse cells and an exact solve at the fine nodes
// inside them. A fine node belongs to ("is owned by") the coarse cell in which it lies; of two that share it, to the one
// below or to the right, and at the end of the grid to the last one.
template <class T>
struct Transfer {
  AxisView a0, a1;
  const T* regular;    // [coarse cell row][kNodeWeights][padded(coarse cells)]: the interior node of coarse cells of 2 x 2
                       // fine cells; weight component * kCellDofs + corner dof
  const T* irregular;  // [cell][node][kNodeWeights]: all other cells, with up to 4 interior nodes
  const T *place0, *place1;
};

// Number of an irregular coarse cell (J, I) among all irregular ones.
EF_HD size_t irregular_cell(const AxisView& a0, const AxisView& a1, int J, int I) {
  const int m1 = a1.n_coarse - 1, rest = m1 - a1.regular;
  if (J < a0.regular) return size_t(J) * rest + (I - a1.regular);
  return size_t(a0.regular) * rest + size_t(J - a0.regular) * m1 + I;
}

// Calls body(fine row, fine column, is owned, interior weights or null, is interior, bilinear weights[4]) for 4 x 4 fine
// nodes from the first corner of a coarse cell on, whether the cell owns them or not. All addresses are valid and nothing
// branches, so that a GPU can read all values at once.
template <class T, class Body>
EF_HD void owned_nodes(const Transfer<T>& P, int J, int I, Body body) {
  const int w0 = P.a0.width[J], w1 = P.a1.width[I], f0 = P.a0.first[J], f1 = P.a1.first[I];
  const int e0 = J == P.a0.n_coarse - 2, e1 = I == P.a1.n_coarse - 2;
  const T* interior = P.irregular + irregular_cell(P.a0, P.a1, J, I) * kCellWeights;
  EF_UNROLL
  for (int p = 0; p < 4; ++p)
    EF_UNROLL
    for (int q = 0; q < 4; ++q) {
      const bool owned = p < w0 + e0 && q < w1 + e1, inside = p > 0 && p < w0 && q > 0 && q < w1;
      const int y = f0 + (p < w0 + e0 ? p : 0), x = f1 + (q < w1 + e1 ? q : 0);
      const T s = p == w0 ? T(1) : P.place0[y], t = q == w1 ? T(1) : P.place1[x];
      const T weights[4] = {(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t};
      const bool possible = p > 0 && p < 3 && q > 0 && q < 3;
      body(y, x, owned, possible ? interior + ((p - 1) * (w1 - 1) + (q - 1)) * kNodeWeights : nullptr, inside, weights);
    }
}

// Restriction: contributions of the fine nodes that a coarse cell owns to its corners. For a regular cell (two by two): u and
// v hold the values at its first corner, to the right of it, below it, and in the middle, which lies at the fractions s and
// t; q(k) are the kNodeWeights weights of the middle.
template <class V, class Q>
EF_HD CornerForces<V> restrict_regular(V s, V t, const Corners<V>& u, const Corners<V>& v, Q q) {
  return {{u.a + (1 - t) * u.b + (1 - s) * u.c + q(0) * u.d + q(8) * v.d, t * u.b + q(1) * u.d + q(9) * v.d,
           s * u.c + q(2) * u.d + q(10) * v.d, q(3) * u.d + q(11) * v.d},
          {v.a + (1 - t) * v.b + (1 - s) * v.c + q(4) * u.d + q(12) * v.d, t * v.b + q(5) * u.d + q(13) * v.d,
           s * v.c + q(6) * u.d + q(14) * v.d, q(7) * u.d + q(15) * v.d}};
}

template <class T>
EF_HD CornerForces<T> restrict_irregular(const Transfer<T>& P, int J, int I, const T* fine) {
  const int nf = P.a1.n_fine;
  const size_t n = size_t(P.a0.n_fine) * nf;
  T out[kCellDofs] = {};
  owned_nodes(P, J, I, [&](int y, int x, bool owned, const T* interior, bool inside, const T* weights) EF_LAMBDA {
    const size_t at = size_t(y) * nf + x;
    const T u = owned ? fine[at] : T(0), v = owned ? fine[at + n] : T(0);
    EF_UNROLL
    for (int k = 0; k < kCellDofs; ++k) {
      const T plain = weights[k % kCorners] * (k / kCorners ? v : u);
      out[k] += interior && inside ? interior[k] * u + interior[kCellDofs + k] * v : plain;
    }
  });
  return {{out[0], out[1], out[2], out[3]}, {out[4], out[5], out[6], out[7]}};
}

// Prolongation: values at the fine nodes that a coarse cell owns from those at its corners, u and v. For a regular cell and
// one component (own): at the first corner, to the right, below, in the middle; q(k) are the kCellDofs weights of the middle.
template <class V, class Q>
EF_HD Corners<V> prolong_regular(V s, V t, const Corners<V>& own, const Corners<V>& u, const Corners<V>& v, Q q) {
  return {own.a, (1 - t) * own.a + t * own.b, (1 - s) * own.a + s * own.c,
          q(0) * u.a + q(1) * u.b + q(2) * u.c + q(3) * u.d + q(4) * v.a + q(5) * v.b + q(6) * v.c + q(7) * v.d};
}

// The same for an irregular cell: put(index in the fine field, value) receives the values.
template <class T, class Put>
EF_HD void prolong_irregular(const Transfer<T>& P, int J, int I, const T* coarse, Put put) {
  const int nf = P.a1.n_fine, nc = P.a1.n_coarse;
  const size_t n = size_t(P.a0.n_fine) * nf, m = size_t(P.a0.n_coarse) * nc;
  const T *c0 = coarse + size_t(J) * nc + I, *c1 = c0 + nc;
  const T in[kCellDofs] = {c0[0], c0[1], c1[0], c1[1], c0[m], c0[m + 1], c1[m], c1[m + 1]};
  owned_nodes(P, J, I, [&](int y, int x, bool owned, const T* interior, bool inside, const T* weights) EF_LAMBDA {
    EF_UNROLL
    for (int k = 0; k < 2; ++k) {
      T sum = 0;
      EF_UNROLL
      for (int e = 0; e < 4; ++e) sum += weights[e] * in[kCorners * k + e];
      if (interior) {
        T exact = 0;
        EF_UNROLL
        for (int e = 0; e < kCellDofs; ++e) exact += interior[kCellDofs * k + e] * in[e];
        sum = inside ? exact : sum;
      }
      if (owned) put(k * n + size_t(y) * nf + x, sum);
    }
  });
}

// -------------------------------------------------------------------------------------------------- coarsening

// Galerkin matrix of one coarse cell of W0 x W1 fine cells (1, 2 or 3 each). Its interior fine nodes are eliminated exactly
// (static condensation), those on its edges are interpolated bilinearly. fine(k)(e) is packed entry e of the matrix of fine
// cell k (row by row); place0[p] and place1[q] are the fractions at which the interior lines of nodes lie. Sets the packed
// Galerkin matrix and the weights [node][component][corner dof] that interpolate the interior nodes.
template <class V, int W0, int W1, class Fine>
EF_HD void coarsen_cell(Fine fine, const V* place0, const V* place1, V* galerkin, V* weights) {
  constexpr int kIn = (W0 - 1) * (W1 - 1), kDofs = kIn > 0 ? 2 * kIn : 1;
  V inner[kDofs][kDofs] = {}, mixed[kDofs][kCellDofs] = {};
  EF_UNROLL
  for (int e = 0; e < kEntries; ++e) galerkin[e] = V{};
  struct Node {
    int interior;   // number of the interior node, or -1
    int n;          // corners that interpolate it
    int corner[2];
    V weight[2];
  };
  auto node = [&](int p, int q) EF_LAMBDA {
    const bool edge0 = p == 0 || p == W0, edge1 = q == 0 || q == W1;
    const int base = 2 * (p == W0) + (q == W1);
    const V t = edge0 && edge1 ? V{} : edge0 ? place1[q] : place0[p];  // a corner has none
    if (!edge0 && !edge1) return Node{(p - 1) * (W1 - 1) + q - 1, 0, {0, 0}, {V{}, V{}}};
    if (edge0 && edge1) return Node{-1, 1, {base, 0}, {V{} + 1, V{}}};
    return Node{-1, 2, {base, base + (edge0 ? 1 : 2)}, {1 - t, t}};
  };
  auto add = [&](int cell, int r, int c, const auto& entries) EF_LAMBDA {
    const int p = cell / W1, q = cell % W1;
    const Node a = node(p + corner_row(r), q + corner_column(r)), b = node(p + corner_row(c), q + corner_column(c));
    if (a.interior < 0 && b.interior >= 0) return;  // by symmetry
    const V v = entries(entry(r, c));
    if (a.interior >= 0 && b.interior >= 0) {
      inner[2 * a.interior + component_of(r)][2 * b.interior + component_of(c)] += v;
    } else if (a.interior >= 0) {
      EF_UNROLL
      for (int k = 0; k < 2; ++k)
        if (k < b.n) mixed[2 * a.interior + component_of(r)][kCorners * component_of(c) + b.corner[k]] += b.weight[k] * v;
    } else {
      EF_UNROLL
      for (int k = 0; k < 2; ++k)
        EF_UNROLL
        for (int l = 0; l < 2; ++l) {
          if (k >= a.n || l >= b.n) continue;
          const int row = kCorners * component_of(r) + a.corner[k], col = kCorners * component_of(c) + b.corner[l];
          if (row <= col) galerkin[entry(row, col)] += a.weight[k] * b.weight[l] * v;
        }
    }
  };
  // Nearly all cells, and those at the end of an odd number of them, of which small grids have many: unrolled at compile
  // time, so that only additions remain.
  if constexpr (W0 > 1 && W1 > 1 && W0 + W1 < 6) {
    unroll(std::make_integer_sequence<int, W0 * W1>{}, [&](auto cell) EF_LAMBDA {
      const auto entries = fine(decltype(cell)::value);
      unroll(std::make_integer_sequence<int, kCellDofs * kCellDofs>{}, [&](auto e) EF_LAMBDA {
        add(decltype(cell)::value, decltype(e)::value / kCellDofs, decltype(e)::value % kCellDofs, entries);
      });
    });
  } else {
    EF_UNROLL
    for (int cell = 0; cell < W0 * W1; ++cell) {
      const auto entries = fine(cell);
      EF_UNROLL
      for (int e = 0; e < kCellDofs * kCellDofs; ++e) add(cell, e / kCellDofs, e % kCellDofs, entries);
    }
  }
  if constexpr (kIn > 0) {
    EF_UNROLL
    for (int k = 0; k < kDofs; ++k) inner[k][k] += inner[k][k] == 0.0 ? V{} + 1.0 : V{};  // fixed dofs
    sweep_inverse<V, kDofs>([&](int p, int q) EF_LAMBDA -> V& { return p <= q ? inner[p][q] : inner[q][p]; });
    EF_UNROLL
    for (int k = 0; k < kDofs; ++k)
      EF_UNROLL
      for (int c = 0; c < kCellDofs; ++c) {
        V sum = {};
        EF_UNROLL
        for (int l = 0; l < kDofs; ++l) sum -= (k <= l ? inner[k][l] : inner[l][k]) * mixed[l][c];
        weights[kCellDofs * k + c] = sum;
      }
    EF_UNROLL
    for (int r = 0; r < kCellDofs; ++r)
      EF_UNROLL
      for (int c = r; c < kCellDofs; ++c)
        EF_UNROLL
        for (int k = 0; k < kDofs; ++k) galerkin[entry(r, c)] += mixed[k][r] * weights[kCellDofs * k + c];
  }
}

// Replaces the cell matrix of a homogeneous body by that of the next level, whose cells are twice as long along the halved
// axes.
EF_CALL void coarsen_homogeneous(bool halve0, bool halve1, double* cell) {
  const double middle[2] = {0, 0.5};
  double coarse[kEntries], weights[kNodeWeights];
  auto fine = [&](int) EF_LAMBDA { return [=](int e) EF_LAMBDA { return cell[e]; }; };
  if (halve0 && halve1) coarsen_cell<double, 2, 2>(fine, middle, middle, coarse, weights);
  else if (halve0) coarsen_cell<double, 2, 1>(fine, middle, middle, coarse, weights);
  else coarsen_cell<double, 1, 2>(fine, middle, middle, coarse, weights);
  for (int e = 0; e < kEntries; ++e) cell[e] = coarse[e];
}

}  // namespace elastofast
