// Row kernels of kernels.h. This file is compiled once for each instruction set (EF_ISA names it), so everything in
// it must stay internal: no standard containers, nothing that the linker could share between instruction sets.
#include "kernels.h"

#include <type_traits>

#include "vectors.h"

namespace elastofast {
namespace {

constexpr int kStrip = 512;  // columns worked on at a time: the rows then stay in the first-level cache

// Contributions of a cell to its four corners, for each of NC components.
template <class V, int NC>
struct CellValues {
  Corners<V> f[NC];
};

struct NoFix {
  template <class Add>
  void operator()(int, int, int, Add) const {}
};
constexpr auto kAllCells = [](int) { return 1 << 30; };

// Every lane's neighbour to the left: (last lane of before, all but the last of now).
template <class T, class V, size_t... Is>
EF_HD V left_lanes(const V& before, const V& now, std::index_sequence<Is...>) {
  return __builtin_shufflevector(before, now, (sizeof...(Is) - 1 + Is)...);
}

// Keeps the compiler from making a second loop for one value of a flag. In two loops products and sums are contracted in
// two ways, and results would depend on where a range of rows begins.
EF_HD void one_code(int& flag) { asm("" : "+r"(flag)); }

// Sums cell contributions at the nodes of rows [begin, end).
//   row(j)               returns a function for cell row j: called with the column of a first cell and an object of the vector
//                        (or number) type, it returns the CellValues of as many cells; used for cells before limit(j)
//   fix(j, lo, hi, add)  calls add(cell, values) for additional contributions of cells in the columns [lo, hi), once a cell
//   out(j)               returns a function that receives component, column and a vector (or number) of sums of node row j
template <class T, int NC, class Limit, class Row, class Fix, class Out>
inline void gather_rows(int n0, int n1, int begin, int end, Limit limit, Row row, Fix fix, Out out) {
  using V = Vector<T>;
  constexpr int kWidth = sizeof(V) / sizeof(T);
  alignas(64) T carry[NC][kStrip];  // contributions of the cell row above to the node row
  CellValues<T, NC> kept[kStrip + 1];  // additional contributions of a cell row, and their columns
  int columns[kStrip + 1];
  for (int i0 = 0; i0 < n1; i0 += kStrip) {
    const int i1 = i0 + kStrip < n1 ? i0 + kStrip : n1;
    for (int k = 0; k < NC; ++k)
      for (int i = i0; i < i1; ++i) carry[k][i - i0] = T(0);
    for (int j = begin > 0 ? begin - 1 : 0; j < end; ++j) {
      const auto take = out(j);
      if (j == n0 - 1) {
        for (int k = 0; k < NC; ++k)
          for (int i = i0; i < i1; ++i) take(k, i, carry[k][i - i0]);
        break;
      }
      // cell c contributes to the nodes c and c + 1 of row j now, and of row j + 1 after the carry has been used
      auto add_at = [&](int c, int k, T left, T right) {
        if (c >= i0) carry[k][c - i0] += left;
        if (c + 1 < i1) carry[k][c + 1 - i0] += right;
      };
      const int first = i0 > 0 ? i0 - 1 : 0, last = i1 < n1 ? i1 : n1 - 1;
      int count = 0;
      fix(j, first, last, [&](int c, const CellValues<T, NC>& v) {
        kept[count] = v, columns[count++] = c;
        for (int k = 0; k < NC; ++k) add_at(c, k, v.f[k].a, v.f[k].b);
      });
      const auto cell = row(j);
      const int cells = limit(j) < last ? limit(j) : last;
      V b[NC] = {}, d[NC] = {};  // of the cells before
      if (i0 > 0 && i0 - 1 < cells) {
        const CellValues<T, NC> v = cell(i0 - 1, T{});
        for (int k = 0; k < NC; ++k) b[k][kWidth - 1] = v.f[k].b, d[k][kWidth - 1] = v.f[k].d;
      }
      int i = i0;
      int writes = j >= begin;
      constexpr auto lanes = std::make_index_sequence<kWidth>{};
      for (; i + kWidth <= cells; i += kWidth) {
        one_code(writes);
        const CellValues<V, NC> v = cell(i, V{});
        for (int k = 0; k < NC; ++k) {
          T* c = &carry[k][i - i0];
          if (writes) take(k, i, load<V>(c) + v.f[k].a + left_lanes<T>(b[k], v.f[k].b, lanes));
          store(c, v.f[k].c + left_lanes<T>(d[k], v.f[k].d, lanes));
          b[k] = v.f[k].b, d[k] = v.f[k].d;
        }
      }
      // the rest: one more vector that overlaps the one before, or cell by cell
      T rest[4][NC][kWidth + 2] = {};
      const int from = i - 1;  // rest[.][.][0] is the cell before
      for (int k = 0; k < NC; ++k) rest[1][k][0] = b[k][kWidth - 1], rest[3][k][0] = d[k][kWidth - 1];
      if (i < cells && cells >= kWidth) {
        const CellValues<V, NC> v = cell(cells - kWidth, V{});
        for (int k = 0; k < NC; ++k)
          for (int c = i; c < cells; ++c) {
            const int lane = c - (cells - kWidth);
            rest[0][k][c - from] = v.f[k].a[lane], rest[1][k][c - from] = v.f[k].b[lane];
            rest[2][k][c - from] = v.f[k].c[lane], rest[3][k][c - from] = v.f[k].d[lane];
          }
      } else {
        for (int c = i; c < cells; ++c) {
          const CellValues<T, NC> v = cell(c, T{});
          for (int k = 0; k < NC; ++k) {
            rest[0][k][c - from] = v.f[k].a, rest[1][k][c - from] = v.f[k].b;
            rest[2][k][c - from] = v.f[k].c, rest[3][k][c - from] = v.f[k].d;
          }
        }
      }
      for (int k = 0; k < NC; ++k)
        for (int n = i; n < i1; ++n) {
          const int c = n - from < kWidth + 1 ? n - from : kWidth + 1;  // none beyond the last cell
          T* up = &carry[k][n - i0];
          if (writes) take(k, n, *up + rest[0][k][c] + rest[1][k][c - 1]);
          *up = rest[2][k][c] + rest[3][k][c - 1];
        }
      for (int e = 0; e < count; ++e)
        for (int k = 0; k < NC; ++k) add_at(columns[e], k, kept[e].f[k].c, kept[e].f[k].d);
    }
  }
}

template <class V, class T>
EF_HD Corners<V> corners(const T* upper, const T* lower, int c) {
  return {load<V>(upper + c), load<V>(upper + c + 1), load<V>(lower + c), load<V>(lower + c + 1)};
}

// ---------------------------------------------------------------------------------------------- the form

template <bool kReduced, class T, class Out>
inline void force_rows(const GridForm<T>& g, const T* x, Rows<const T> u, int begin, int end, Out out) {
  const CellLaw<T> law = g.law;
  gather_rows<T, 2>(
      g.n0, g.n1, begin, end, kAllCells,
      [&](int j) {
        const T *__restrict x0 = x + size_t(j) * g.n1, *__restrict x1 = x0 + g.n1;
        const T *__restrict u0 = u.row(0, j), *__restrict u1 = u.row(0, j + 1), *__restrict v0 = u.row(1, j),
                *__restrict v1 = u.row(1, j + 1);
        return [=](int c, auto kind) EF_LAMBDA {
          using V = decltype(kind);
          const CornerForces<V> f =
              cell_force<kReduced>(law, corners<V>(x0, x1, c), corners<V>(u0, u1, c), corners<V>(v0, v1, c));
          return CellValues<V, 2>{{f.u, f.v}};
        };
      },
      NoFix{}, out);
}

template <class T, class Out>
inline void force_rows(const GridForm<T>& g, const T* x, Rows<const T> u, int begin, int end, Out out) {
  g.reduced ? force_rows<true>(g, x, u, begin, end, out) : force_rows<false>(g, x, u, begin, end, out);
}

template <class T>
double force(const GridForm<T>& g, const T* x, const T* u, T* f, int begin, int end) {
  const size_t n = size_t(g.n0) * g.n1;
  force_rows(g, x, Rows<const T>::field(u, g.n0, g.n1), begin, end, [&](int j) {
    T* __restrict o = f + size_t(j) * g.n1;
    return [=](int k, int i, auto v) EF_LAMBDA { store(o + k * n + i, v); };
  });
  double total = 0;  // just written, so still in cache
  for (int k = 0; k < 2; ++k) total += sum(f + k * n + size_t(begin) * g.n1, size_t(end - begin) * g.n1);
  return total;
}

template <class T>
void residual_minus_product(const GridForm<T>& g, const T* x, const T* shift, Rows<const T> d, Rows<const T> r,
                            Rows<T> out, int begin, int end) {
  const size_t n = size_t(g.n0) * g.n1;
  auto run = [&](auto shift_too) {
    force_rows(g, x, d, begin, end, [&](int j) {
      T* const o[2] = {out.row(0, j), out.row(1, j)};
      const T *const q[2] = {r.row(0, j), r.row(1, j)}, *const p[2] = {d.row(0, j), d.row(1, j)};
      const T* const s = shift + size_t(j) * g.n1;
      return [=](int k, int i, auto v) EF_LAMBDA {
        using V = decltype(v);
        if constexpr (decltype(shift_too)::value) v += load<V>(s + k * n + i) * load<V>(p[k] + i);
        store(o[k] + i, load<V>(q[k] + i) - v);
      };
    });
  };
  shift ? run(std::true_type{}) : run(std::false_type{});
}

template <class T>
double apply_dot(const GridForm<T>& g, const T* x, const T* shift, const T* p, T* q, int begin, int end) {
  const size_t n = size_t(g.n0) * g.n1;
  force_rows(g, x, Rows<const T>::field(p, g.n0, g.n1), begin, end, [&](int j) {
    const size_t at = size_t(j) * g.n1;
    T* __restrict o = q + at;
    const T *__restrict s = shift ? shift + at : nullptr, *__restrict w = p + at;
    return [=](int k, int i, auto v) EF_LAMBDA {
      using V = decltype(v);
      const size_t q = k * n + i;
      if (s) v += load<V>(s + q) * load<V>(w + q);
      store(o + q, v);
    };
  });
  double total = 0;
  for (int k = 0; k < 2; ++k) {
    const size_t from = k * n + size_t(begin) * g.n1, to = k * n + size_t(end) * g.n1;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = from; i < to; ++i) sum += p[i] * q[i];
    total += sum;
  }
  return total;
}

template <bool kReduced, class T>
inline void sensitivity_rows(const GridForm<T>& g, const T* u, const T* v, T* out, int begin, int end) {
  const size_t n = size_t(g.n0) * g.n1;
  const CellLaw<T> law = g.law;
  gather_rows<T, 1>(
      g.n0, g.n1, begin, end, kAllCells,
      [&](int j) {
        const size_t o = size_t(j) * g.n1;
        const T *__restrict u0 = u + o, *__restrict u1 = u0 + g.n1, *__restrict w0 = u0 + n, *__restrict w1 = w0 + g.n1;
        const T *__restrict v0 = v + o, *__restrict v1 = v0 + g.n1, *__restrict z0 = v0 + n, *__restrict z1 = z0 + g.n1;
        return [=](int c, auto kind) EF_LAMBDA {
          using V = decltype(kind);
          return CellValues<V, 1>{{cell_sensitivity<kReduced>(law, corners<V>(u0, u1, c), corners<V>(w0, w1, c),
                                                              corners<V>(v0, v1, c), corners<V>(z0, z1, c))}};
        };
      },
      NoFix{},
      [&](int j) {
        T* __restrict o = out + size_t(j) * g.n1;
        return [=](int, int i, auto v) EF_LAMBDA { store(o + i, v); };
      });
}

template <class T>
double sensitivity(const GridForm<T>& g, const T* u, const T* v, T* out, int begin, int end) {
  g.reduced ? sensitivity_rows<true>(g, u, v, out, begin, end) : sensitivity_rows<false>(g, u, v, out, begin, end);
  return sum(out + size_t(begin) * g.n1, size_t(end - begin) * g.n1);
}

// ---------------------------------------------------------------------------------- compressed sparse rows

constexpr int kBlock = 64;  // columns worked on at a time, so that all stencil entries of a block stay in cache

// Writes entries[e] of the nodes i0 <= i < i1 of row j as CSR rows: kBlocks groups of the up to 9 neighbours.
template <int kBlocks, class T>
inline void write_rows(int n0, int n1, int j, int i0, int i1, const long long* indptr, T* values,
                       const T (*entries)[kBlock]) {
  const bool inside = j > 0 && j < n0 - 1;
  for (int i = i0; i < i1; ++i) {
    T* __restrict o = values + indptr[size_t(j) * n1 + i];
    const int k = i - i0;
    if (inside && i > 0 && i < n1 - 1) {
      for (int e = 0; e < 9 * kBlocks; ++e) o[e] = entries[e][k];
    } else {
      for (int b = 0; b < kBlocks; ++b)
        for (int dj = -1; dj <= 1; ++dj)
          for (int di = -1; di <= 1; ++di)
            if (j + dj >= 0 && j + dj < n0 && i + di >= 0 && i + di < n1)
              *o++ = entries[9 * b + 3 * (dj + 1) + di + 1][k];
    }
  }
}

template <class T>
struct FactorRow {
  T v[9][kBlock + 1];
  template <class V>
  EF_HD StiffnessFactors<V> at(int k) const {
    return {load<V>(&v[0][k]), load<V>(&v[1][k]), load<V>(&v[2][k]),
            load<V>(&v[3][k]), load<V>(&v[4][k]), {{load<V>(&v[5][k]), load<V>(&v[6][k])},
                                                   {load<V>(&v[7][k]), load<V>(&v[8][k])}}};
  }
  template <class V>
  EF_HD void set(int k, const StiffnessFactors<V>& f) {
    const V all[9] = {f.m, f.tp, f.tm, f.sp, f.sm, f.x[0][0], f.x[0][1], f.x[1][0], f.x[1][1]};
    for (int e = 0; e < 9; ++e) store(&v[e][k], all[e]);
  }
};

template <bool kReduced, class T>
inline void stiffness_rows(const GridForm<T>& g, const T* x, const long long* indptr, T* values, int begin, int end) {
  const CellLaw<T> law = g.law;
  const int n1 = g.n1;
  FactorRow<T> rows[2];
  alignas(64) T entries[18][kBlock];
  for (int i0 = 0; i0 < n1; i0 += kBlock) {
    const int i1 = i0 + kBlock < n1 ? i0 + kBlock : n1;
    const int lo = i0 > 0 ? i0 - 1 : 0, hi = i1 < n1 ? i1 : n1 - 1;
    int filled = -1;  // the cell row that rows[filled & 1] holds
    for (int j = begin; j < end; ++j) {
      for (int r = j - 1; r <= j; ++r) {
        if (r <= filled && r >= 0 && j > begin) continue;
        FactorRow<T>& out = rows[r & 1];
        for (auto& v : out.v)
          for (int k = 0; k <= kBlock; ++k) v[k] = T(0);  // cells outside the grid have no stiffness
        if (r < 0 || r >= g.n0 - 1) continue;
        const T *__restrict x0 = x + size_t(r) * n1, *__restrict x1 = x0 + n1;
        for_vectors<T>(lo, hi, [&](int c, auto kind) EF_LAMBDA {
          using V = decltype(kind);
          out.set(c - i0 + 1, stiffness_factors<V, T>(moments<V, T>(corners<V>(x0, x1, c))));
        });
        filled = r;
      }
      const FactorRow<T>&above = rows[(j - 1) & 1], &below = rows[j & 1];
      auto component = [&](auto a) {
        constexpr int A = decltype(a)::value;
        unroll(std::make_integer_sequence<int, 18>{}, [&](auto e) EF_LAMBDA {
          constexpr int E = decltype(e)::value, B = E / 9, DJ = E % 9 / 3 - 1, DI = E % 3 - 1;
          for_vectors<T>(0, kBlock, [&](int k, auto kind) EF_LAMBDA {
            using V = decltype(kind);
            store(&entries[E][k],
                  node_entry<kReduced, A, B, DJ, DI, 0>(law, above.template at<V>(k), above.template at<V>(k + 1)) +
                      node_entry<kReduced, A, B, DJ, DI, 1>(law, below.template at<V>(k), below.template at<V>(k + 1)));
          });
        });
        write_rows<2>(g.n0, n1, j, i0, i1, indptr + size_t(A) * g.n0 * n1, values, entries);
      };
      component(std::integral_constant<int, 0>{});
      component(std::integral_constant<int, 1>{});
    }
  }
}

template <class T>
void stiffness_values(const GridForm<T>& g, const T* x, const long long* indptr, T* values, int begin, int end) {
  g.reduced ? stiffness_rows<true>(g, x, indptr, values, begin, end)
            : stiffness_rows<false>(g, x, indptr, values, begin, end);
}

template <bool kReduced, class T>
inline void contraction_rows(const GridForm<T>& g, const T* u, const long long* indptr, T* values, int begin, int end) {
  const CellLaw<T> law = g.law;
  const int n0 = g.n0, n1 = g.n1;
  const size_t n = size_t(n0) * n1;
  T cells[2][8][4][kBlock + 2];  // [row][dof][node of the modulus][cell]
  alignas(64) T entries[9][kBlock];
  for (int i0 = 0; i0 < n1; i0 += kBlock) {
    const int i1 = i0 + kBlock < n1 ? i0 + kBlock : n1;
    const int lo = i0 > 0 ? i0 - 1 : 0, hi = i1 < n1 ? i1 : n1 - 1;
    for (int j = begin; j < end; ++j) {
      for (int r = j - 1; r <= j; ++r) {
        if (r == j - 1 && j > begin) continue;  // made for the row before
        auto& out = cells[r & 1];
        for (auto& dof : out)
          for (auto& node : dof)
            for (T& v : node) v = T(0);
        if (r < 0 || r >= n0 - 1) continue;
        const T *u0 = u + size_t(r) * n1, *u1 = u0 + n1, *v0 = u0 + n, *v1 = v0 + n1;
        for (int q = 0; q < 4; ++q) {
          const Corners<T> unit = {T(q == 0), T(q == 1), T(q == 2), T(q == 3)};
          for_vectors<T>(lo, hi, [&](int c, auto kind) EF_LAMBDA {
            using V = decltype(kind);
            const Corners<V> x = {V{} + unit.a, V{} + unit.b, V{} + unit.c, V{} + unit.d};
            const CornerForces<V> f =
                cell_force<kReduced>(law, x, corners<V>(u0, u1, c), corners<V>(v0, v1, c));
            const V all[8] = {f.u.a, f.u.b, f.u.c, f.u.d, f.v.a, f.v.b, f.v.c, f.v.d};
            for (int e = 0; e < 8; ++e) store(&out[e][q][c - i0 + 1], all[e]);
          });
        }
      }
      for (int comp = 0; comp < 2; ++comp) {
        for (int e = 0; e < 9; ++e) {
          const int dj = e / 3 - 1, di = e % 3 - 1;
          for (int k = 0; k < kBlock; ++k) entries[e][k] = T(0);
          for (int cj = 0; cj < 2; ++cj)
            for (int ci = 0; ci < 2; ++ci) {
              const int s = 1 - cj, t = 1 - ci, s2 = s + dj, t2 = t + di;
              if (s2 < 0 || s2 > 1 || t2 < 0 || t2 > 1) continue;
              const T* __restrict from = cells[(j - 1 + cj) & 1][4 * comp + 2 * s + t][2 * s2 + t2] + ci;
              for (int k = 0; k < kBlock; ++k) entries[e][k] += from[k];
            }
        }
        write_rows<1>(n0, n1, j, i0, i1, indptr + comp * n, values, entries);
      }
    }
  }
}

template <class T>
void contraction_values(const GridForm<T>& g, const T* u, const long long* indptr, T* values, int begin, int end) {
  g.reduced ? contraction_rows<true>(g, u, indptr, values, begin, end)
            : contraction_rows<false>(g, u, indptr, values, begin, end);
}

// ------------------------------------------------------------------------------------- smoothers, transfers

// As special_solve, for an inverse whose entries are all stored, column by column.
template <class T>
EF_HD CornerForces<T> full_solve(const T* inverse, const Corners<T>& u, const Corners<T>& v) {
  constexpr int kLanes = 8, kParts = kCellDofs / kLanes;
  static_assert(kCellDofs % kLanes == 0, "columns are multiplied in whole vectors");
  typedef T V __attribute__((vector_size(kLanes * sizeof(T))));
  const T in[kCellDofs] = {u.a, u.b, u.c, u.d, v.a, v.b, v.c, v.d};
  V out[kParts] = {};
  for (int q = 0; q < kCellDofs; ++q)
    for (int k = 0; k < kParts; ++k) out[k] += load<V>(inverse + q * kCellDofs + k * kLanes) * in[q];
  const V o = out[0];
  return {{o[0], o[1], o[2], o[3]}, {o[4], o[5], o[6], o[7]}};
}

template <bool kAdd, class T>
inline void patch_rows(const Patch<T>& B, Rows<const T> r, T a, T b, Rows<T> d, int begin, int end) {
  const int n1 = B.n1, m1 = B.n1 - 1;
  gather_rows<T, 2>(
      B.n0, n1, begin, end, kAllCells,
      [&](int j) {
        const T *__restrict u0 = r.row(0, j), *__restrict u1 = r.row(0, j + 1), *__restrict v0 = r.row(1, j),
                *__restrict v1 = r.row(1, j + 1);
        const T* __restrict scale = B.scale + size_t(j) * m1;
        const Blocks<T> own = B.blocks;
        return [=](int i, auto kind) EF_LAMBDA {
          using V = decltype(kind);
          const CornerForces<V> f = patch_solve(own.data, load<V>(scale + i), corners<V>(u0, u1, i), corners<V>(v0, v1, i));
          return CellValues<V, 2>{{f.u, f.v}};
        };
      },
      [&](int j, int lo, int hi, auto add) {
        for (int k = B.special_row[j]; k < B.special_row[j + 1]; ++k) {
          const int i = B.special_col[k];
          if (i < lo || i >= hi) continue;
          const CornerForces<T> f =
              full_solve(B.special + size_t(k) * kCellDofs * kCellDofs, corners<T>(r.row(0, j), r.row(0, j + 1), i),
                            corners<T>(r.row(1, j), r.row(1, j + 1), i));
          add(i, CellValues<T, 2>{{f.u, f.v}});
        }
      },
      [&](int j) {
        T* const o[2] = {d.row(0, j), d.row(1, j)};
        return [=](int k, int i, auto v) EF_LAMBDA {
          using V = decltype(v);
          store(o[k] + i, kAdd ? a * load<V>(o[k] + i) + b * v : b * v);
        };
      });
}

template <class T>
void patch(const Patch<T>& B, Rows<const T> r, T a, T b, Rows<T> d, int begin, int end) {
  a == 0 ? patch_rows<false>(B, r, a, b, d, begin, end) : patch_rows<true>(B, r, a, b, d, begin, end);
}

// Products of a stored stencil with u at rows [begin, end); out(j) gives a function that takes column and both
// components. Every coefficient is read once: for its own node and, transposed, for the neighbour. Fields have room
// around them, because the (finite) values past the ends of rows are multiplied by zero coefficients.
template <class T, class Out>
inline void stencil_rows(const Stencil<T>& A, Rows<const T> u, int begin, int end, Out out) {
  constexpr int kSpan = 1024;  // columns at a time
  constexpr int kRoom = kSpan + 2 * kBlockNodes;
  using V = Vector<T>;
  constexpr int kWidth = sizeof(V) / sizeof(T);
  const int n1 = A.n1;
  // contributions of the nodes of row j to themselves, to their right neighbours, and to the row below: to the left, straight
  // and to the right; the index before the column is the component
  alignas(64) T own[2][kRoom], east[2][kRoom], below[2][3][2][kRoom];
  for (int i0 = 0; i0 < n1; i0 += kSpan) {
    const int i1 = i0 + kSpan < n1 ? i0 + kSpan : n1;
    const int b0 = i0 ? i0 / kBlockNodes - 1 : 0, b1 = i1 < n1 ? i1 / kBlockNodes + 1 : blocks(n1);
    const int base = i0 - kBlockNodes;  // buffer index 0
    for (int k = 0; k < 2; ++k) {
      east[k][kBlockNodes - 1] = T(0);
      for (auto& half : below)
        for (auto& side : half)
          for (int i = 0; i < i1 - i0 + 2 * kBlockNodes; ++i) side[k][i] = T(0);
    }
    for (int j = begin > 0 ? begin - 1 : 0; j < end; ++j) {
      int writes = j >= begin;
      auto& down = below[j & 1];
      const auto& up = below[(j - 1) & 1];
      const T *__restrict u1 = u.row(0, j), *__restrict v1 = u.row(1, j), *__restrict u2 = u.row(0, j + 1),
              *__restrict v2 = u.row(1, j + 1);
      for (int b = b0; b < b1; ++b)
        for (int part = 0; part < kBlockNodes; part += kWidth) {
          const T* __restrict c = A.block(j, b) + part;
          auto at = [&](int p) EF_LAMBDA { return load<V>(c + p * kBlockNodes); };
          const int i = b * kBlockNodes + part, o = i - base;
          const V uc = load<V>(u1 + i), vc = load<V>(v1 + i);
          const V sw0 = at(kSouthWest), sw1 = at(kSouthWest + 1), sw2 = at(kSouthWest + 2), sw3 = at(kSouthWest + 3);
          const V s0 = at(kSouth), s1 = at(kSouth + 1), s2 = at(kSouth + 2), s3 = at(kSouth + 3);
          const V se0 = at(kSouthEast), se1 = at(kSouthEast + 1), se2 = at(kSouthEast + 2), se3 = at(kSouthEast + 3);
          store(&down[0][0][o], sw0 * uc + sw2 * vc);
          store(&down[0][1][o], sw1 * uc + sw3 * vc);
          store(&down[1][0][o], s0 * uc + s2 * vc);
          store(&down[1][1][o], s1 * uc + s3 * vc);
          store(&down[2][0][o], se0 * uc + se2 * vc);
          store(&down[2][1][o], se1 * uc + se3 * vc);
          one_code(writes);
          if (!writes) continue;
          const V d00 = at(0), d01 = at(1), d11 = at(2), e0 = at(kEast), e1 = at(kEast + 1), e2 = at(kEast + 2),
                  e3 = at(kEast + 3);
          store(&east[0][o], e0 * uc + e2 * vc);
          store(&east[1][o], e1 * uc + e3 * vc);
          const V ue = load<V>(u1 + i + 1), ve = load<V>(v1 + i + 1), ul = load<V>(u2 + i - 1), vl = load<V>(v2 + i - 1);
          const V um = load<V>(u2 + i), vm = load<V>(v2 + i), ur = load<V>(u2 + i + 1), vr = load<V>(v2 + i + 1);
          store(&own[0][o], (d00 * uc + d01 * vc + e0 * ue + e1 * ve + sw0 * ul + sw1 * vl) +
                                (s0 * um + s1 * vm + se0 * ur + se1 * vr));
          store(&own[1][o], (d01 * uc + d11 * vc + e2 * ue + e3 * ve + sw2 * ul + sw3 * vl) +
                                (s2 * um + s3 * vm + se2 * ur + se3 * vr));
        }
      if (j < begin) continue;
      const auto take = out(j);
#pragma GCC ivdep
      for (int i = i0; i < i1; ++i) {
        const int o = i - base;
        take(i, own[0][o] + east[0][o - 1] + up[0][0][o + 1] + up[1][0][o] + up[2][0][o - 1],
             own[1][o] + east[1][o - 1] + up[0][1][o + 1] + up[1][1][o] + up[2][1][o - 1]);
      }
    }
  }
}

template <class T>
void stencil_residual_minus_product(const Stencil<T>& A, Rows<const T> d, Rows<const T> r, Rows<T> out, int begin, int end) {
  stencil_rows(A, d, begin, end, [&](int j) {
    const T *q0 = r.row(0, j), *q1 = r.row(1, j);
    T *o0 = out.row(0, j), *o1 = out.row(1, j);
    return [=](int i, T f0, T f1) EF_LAMBDA { o0[i] = q0[i] - f0, o1[i] = q1[i] - f1; };
  });
}

template <class T>
void restrict_rows(const Transfer<T>& P, const T* fine, T* coarse, int begin, int end) {
  const int nf = P.a1.n_fine, nc = P.a1.n_coarse, ld = padded(nc - 1);
  const size_t n = size_t(P.a0.n_fine) * nf, m = size_t(P.a0.n_coarse) * nc;
  gather_rows<T, 2>(
      P.a0.n_coarse, nc, begin, end, [&](int J) { return J < P.a0.regular ? P.a1.regular : 0; },
      [&](int J) {
        const T *__restrict u0 = fine + size_t(2 * J) * nf, *__restrict u1 = u0 + nf, *__restrict v0 = u0 + n,
                *__restrict v1 = v0 + nf;
        const T *__restrict Q = P.regular + size_t(J) * kNodeWeights * ld, *__restrict place = P.place1;
        const T s = P.place0[2 * J + 1];
        return [=](int I, auto kind) EF_LAMBDA {
          using V = decltype(kind);
          const Corners<V> u = {even<V>(u0 + 2 * I), odd<V>(u0 + 2 * I), even<V>(u1 + 2 * I), odd<V>(u1 + 2 * I)};
          const Corners<V> v = {even<V>(v0 + 2 * I), odd<V>(v0 + 2 * I), even<V>(v1 + 2 * I), odd<V>(v1 + 2 * I)};
          const CornerForces<V> f = restrict_regular<V>(
              V{} + s, odd<V>(place + 2 * I), u, v, [&](int k) EF_LAMBDA { return load<V>(Q + size_t(k) * ld + I); });
          return CellValues<V, 2>{{f.u, f.v}};
        };
      },
      [&](int J, int lo, int hi, auto add) {
        const int top = J < P.a0.regular ? P.a1.regular : 0;
        for (int I = lo < top ? top : lo; I < hi; ++I) {
          const CornerForces<T> f = restrict_irregular(P, J, I, fine);
          add(I, CellValues<T, 2>{{f.u, f.v}});
        }
      },
      [&](int j) {
        T* __restrict o = coarse + size_t(j) * nc;
        return [=](int k, int i, auto v) EF_LAMBDA { store(o + k * m + i, v); };
      });
}

template <class T>
void prolong_rows(const Transfer<T>& P, const T* coarse, T* fine, int begin, int end) {
  const int nf = P.a1.n_fine, nc = P.a1.n_coarse, ld = padded(nc - 1);
  const size_t n = size_t(P.a0.n_fine) * nf, m = size_t(P.a0.n_coarse) * nc;
  for (int J = begin; J < end; ++J) {
    const T *c0 = coarse + size_t(J) * nc, *c1 = c0 + nc;
    int start = 0;
    if (J < P.a0.regular) {
      start = P.a1.regular;
      const T s = P.place0[2 * J + 1];
      const T *__restrict Q = P.regular + size_t(J) * kNodeWeights * ld, *__restrict place = P.place1;
      for (int k = 0; k < 2; ++k) {
        T *__restrict o0 = fine + k * n + size_t(2 * J) * nf, *__restrict o1 = o0 + nf;
        const T *__restrict a0 = c0 + k * m, *__restrict a1 = c1 + k * m;
        const T* __restrict q = Q + kCellDofs * k * ld;
#pragma GCC ivdep
        for (int I = 0; I < start; ++I) {
          const T *__restrict c = c0 + I, *__restrict e = c1 + I;
          const Corners<T> own = {a0[I], a0[I + 1], a1[I], a1[I + 1]}, u = {c[0], c[1], e[0], e[1]},
                           v = {c[m], c[m + 1], e[m], e[m + 1]};
          const Corners<T> f = prolong_regular(s, place[2 * I + 1], own, u, v,
                                               [&](int w) EF_LAMBDA { return q[size_t(w) * ld + I]; });
          o0[2 * I] = f.a, o0[2 * I + 1] = f.b, o1[2 * I] = f.c, o1[2 * I + 1] = f.d;
        }
      }
    }
    for (int I = start; I < nc - 1; ++I)
      prolong_irregular(P, J, I, coarse, [&](size_t at, T value) { fine[at] = value; });
  }
}

// ------------------------------------------------------------------------------------------------- set-up

// Several cells side by side; the small dense algebra below is written once for them and for plain doubles.
using Lanes = Vector<double>;
constexpr int kLanes = sizeof(Lanes) / sizeof(double);

template <bool kReduced>
inline void cell_matrices_row(const GridForm<double>& g, const double* x, const double* share, int j, double* planes,
                              int ld) {
  const int n1 = g.n1, m1 = n1 - 1;
  const size_t n = size_t(g.n0) * n1;
  const CellLaw<double> law = g.law;
  for (int c = 0; c < m1; c += kLanes) {
    double tail[6][kLanes + 1];
    const double* rows[6] = {x + size_t(j) * n1 + c, x + size_t(j + 1) * n1 + c};  // x; share by component and row
    if (share)
      for (int k = 0; k < 4; ++k) rows[2 + k] = share + (k / 2) * n + size_t(j + k % 2) * n1 + c;
    if (c + kLanes + 1 > n1)  // the last group must not read past the fields
      for (int k = 0; k < (share ? 6 : 2); ++k) {
        for (int i = 0; i <= kLanes; ++i) tail[k][i] = rows[k][c + i < n1 ? i : n1 - 1 - c];
        rows[k] = tail[k];
      }
    const Corners<Lanes> xc = corners<Lanes>(rows[0], rows[1], 0);
    const StiffnessFactors<Lanes> f = stiffness_factors<Lanes, double>(moments<Lanes, double>(xc));
    cell_matrix<kReduced>(law, f, [&](auto p, auto q, Lanes v) EF_LAMBDA {
      constexpr int P = decltype(p)::value, Q = decltype(q)::value;
      if (P == Q && share) v += load<Lanes>(rows[corner_row(P) + 2 * component_of(P) + 2] + corner_column(P));
      store(planes + size_t(entry(P, Q)) * ld + c, v);
    });
  }
}

void cell_matrices(const GridForm<double>& g, const double* x, const double* share, int j, double* planes, int ld) {
  g.reduced ? cell_matrices_row<true>(g, x, share, j, planes, ld) : cell_matrices_row<false>(g, x, share, j, planes, ld);
}

// Coarsens the cells [I, ...) of one coarse row with widths W0 x W1; Lanes cells at once or one.
template <class V, int W0, int W1, class Load>
inline void coarsen_at(const AxisView& a0, int row, Load load_fine, const V* place1, double* coarse, int ld_coarse, int I,
                       double* weights_out, int ld_weights) {
  V place0[3], galerkin[kEntries], weights[kCellWeights];
  for (int p = 1; p < W0; ++p) place0[p] = V{} + a0.place[a0.first[row] + p];
  coarsen_cell<V, W0, W1>(load_fine, place0, place1, galerkin, weights);
  for (int e = 0; e < kEntries; ++e) __builtin_memcpy(coarse + size_t(e) * ld_coarse + I, &galerkin[e], sizeof(V));
  for (int k = 0; k < kNodeWeights * (W0 - 1) * (W1 - 1); ++k)
    __builtin_memcpy(weights_out + size_t(k) * ld_weights, &weights[k], sizeof(V));
}

void coarsen_row(const AxisView& a0, const AxisView& a1, int row, const double* const* fine, int ld, double* coarse,
                 int ld_coarse, double* interior, int ld_interior, double* irregular) {
  int start = 0;
  if (row < a0.regular) {
    start = a1.regular;
    for (int I = 0; I < start; I += kLanes) {
      Lanes place1[2];
      for (int k = 0; k < kLanes; ++k) place1[1][k] = a1.place[2 * (I + k < start ? I + k : I) + 1];
      auto load_fine = [&](int cell) EF_LAMBDA {
        return [&, cell](int e) EF_LAMBDA -> Lanes {
          const double* p = fine[cell / 2] + size_t(e) * ld + 2 * I;
          return cell % 2 ? odd<Lanes>(p) : even<Lanes>(p);
        };
      };
      coarsen_at<Lanes, 2, 2>(a0, row, load_fine, place1, coarse, ld_coarse, I, interior + I, ld_interior);
    }
  }
  for (int I = start; I < a1.n_coarse - 1; ++I) {
    const int first = a1.first[I];
    const double place1[3] = {0, a1.place[first + 1], a1.width[I] > 2 ? a1.place[first + 2] : 1};
    double* weights = irregular + kCellWeights * irregular_cell(a0, a1, row, I);
    unroll(std::make_integer_sequence<int, 9>{}, [&](auto k) {
      constexpr int W0 = decltype(k)::value / 3 + 1, W1 = decltype(k)::value % 3 + 1;
      if (a0.width[row] == W0 && a1.width[I] == W1)
        coarsen_at<double, W0, W1>(
            a0, row,
            [&](int cell) {
              return [&, cell](int e) { return fine[cell / W1][size_t(e) * ld + first + cell % W1]; };
            },
            place1, coarse, ld_coarse, I, weights, 1);
    });
  }
}

template <class T, class U>
double dot(const T* a, const U* b, size_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

template <class T, class X>
void scale_add(T a, const X* x, T b, T* y, size_t n) {
  if (b == 0)  // y may be anything
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i) y[i] = a * x[i];
  else
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i) y[i] = a * x[i] + b * y[i];
}

double lower(double scale, const double* x, float* low, size_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; ++i) {
    low[i] = float(scale * x[i]);
    sum += x[i];
  }
  return sum;
}

double cg_update(double step, const double* p, const double* q, double* x, double* r, size_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; ++i) {
    x[i] += step * p[i];
    r[i] -= step * q[i];
    sum += r[i] * r[i];
  }
  return sum;
}

template <class T>
constexpr Contractions<T> kContractions = {force<T>, sensitivity<T>, stiffness_values<T>, contraction_values<T>};
constexpr Cycle kCycle = {residual_minus_product<float>, stencil_residual_minus_product<float>, patch<float>,
                          restrict_rows<float>,          prolong_rows<float>,                   dot<float, float>,
                          scale_add<float, float>};
constexpr Outer kOuter = {apply_dot<double>,  dot<double, double>,      scale_add<double, double>, lower,
                          dot<double, float>, scale_add<double, float>, cg_update};
constexpr Setup kSetup = {cell_matrices, coarsen_row};

}  // namespace

#define EF_JOIN_(a, b) a##b
#define EF_JOIN(a, b) EF_JOIN_(a, b)
#define EF_TEXT_(a) #a
#define EF_TEXT(a) EF_TEXT_(a)

extern const VolumeTable EF_JOIN(volume_kernels_, EF_ISA);
extern const KernelTable EF_JOIN(kernels_, EF_ISA);
const KernelTable EF_JOIN(kernels_, EF_ISA) = {EF_TEXT(EF_ISA), &kContractions<float>, &kContractions<double>, &kCycle,
                                               &kOuter,          &kSetup,               &EF_JOIN(volume_kernels_, EF_ISA)};

}  // namespace elastofast
