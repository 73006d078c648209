// Kernels of the trilinear form on a grid. The contributions of the cells around a node are summed in a fixed order.
#pragma once
#include <cstdint>

#include "../numbering.h"
#include "launch.h"

namespace elastofast {

// Row and column of an index; 32-bit division is several times faster on a GPU.
EF_HD int row_of(long k, int width) { return int(unsigned(k) / unsigned(width)); }
EF_HD int column_of(long k, int width) { return int(unsigned(k) % unsigned(width)); }

template <class T>
EF_HD Corners<T> corners_at(const T* p, int n1) {
  return {p[0], p[1], p[n1], p[n1 + 1]};
}

// One field for each batch member; stride 0 if all members share one.
template <class T>
struct Fields {
  T* data;
  long stride;
  EF_HD T* of(int b) const { return data + b * stride; }
};

// Outputs of `gather` for forces.
struct Nothing {};

template <class T>
struct StoreForce {
  T* f;
  long n;
  EF_HD Nothing before(int, long) const { return {}; }
  EF_HD void operator()(int b, long node, T u, T v, Nothing) const {
    T* o = f + 2 * n * b + node;
    o[0] = u, o[n] = v;
  }
};

// f + shift d, zero at fixed dofs.
template <class T>
struct StoreShifted {
  T* f;
  long n;
  const T *d, *shift;  // shift may be null
  const uint8_t* fixed;
  struct Before {
    T u, v;
    bool fixed0, fixed1;
  };
  EF_HD Before before(int b, long node) const {
    const long at = 2 * n * b + node;
    Before k{0, 0, fixed[node] != 0, fixed[node + n] != 0};
    if (shift) k.u = shift[at] * d[at], k.v = shift[at + n] * d[at + n];
    return k;
  }
  EF_HD void operator()(int b, long node, T u, T v, const Before& k) const {
    const long at = 2 * n * b + node;
    f[at] = k.fixed0 ? T(0) : u + k.u;
    f[at + n] = k.fixed1 ? T(0) : v + k.v;
  }
};

template <bool kReduced, class T>
struct ForceCells {
  CellLaw<T> law;
  int n1;
  long n;
  Fields<const T> x;
  const T* u;
  EF_HD CornerForces<T> operator()(int b, int j, int i) const {
    const long at = long(j) * n1 + i;
    const T* own = u + 2 * n * b + at;
    return cell_force<kReduced>(law, corners_at(x.of(b) + at, n1), corners_at(own, n1), corners_at(own + n, n1));
  }
};

template <bool kReduced, class T>
struct SensitivityCells {
  CellLaw<T> law;
  int n1;
  long n;
  const T *u, *v;
  EF_HD CornerForces<T> operator()(int b, int j, int i) const {
    const T *p = u + 2 * n * b + long(j) * n1 + i, *q = v + (p - u);
    return {cell_sensitivity<kReduced>(law, corners_at(p, n1), corners_at(p + n, n1), corners_at(q, n1), corners_at(q + n, n1)),
            {}};
  }
};

template <class T>
struct StoreNode {
  T* g;
  long n;
  EF_HD Nothing before(int, long) const { return {}; }
  EF_HD void operator()(int b, long node, T sum, T, Nothing) const { g[n * b + node] = sum; }
};

// Calls put(neighbour 0 ... 8) for the neighbours of a node that exist, in order.
template <class Put>
EF_HD void each_neighbour(int n0, int n1, int j, int i, Put put) {
  for (int dj = -1; dj <= 1; ++dj)
    for (int di = -1; di <= 1; ++di)
      if (j + dj >= 0 && j + dj < n0 && i + di >= 0 && i + di < n1) put(3 * (dj + 1) + di + 1);
}

// Both rows of K(x) of one node, in CSR order.
template <bool kReduced, class T>
struct StiffnessBody {
  CellLaw<T> law;
  int n0, n1;
  const T* x;
  const long long* indptr;
  T* values;
  EF_HD StiffnessFactors<T> factors(int j, int i) const {
    Corners<T> c = {};  // cells outside the grid have no stiffness
    if (j >= 0 && j < n0 - 1 && i >= 0 && i < n1 - 1) c = corners_at(x + long(j) * n1 + i, n1);
    return stiffness_factors(moments(c));
  }
  EF_HD void operator()(int, long k) const {
    const int j = row_of(k, n1), i = column_of(k, n1);
    const StiffnessFactors<T> cells[4] = {factors(j - 1, i - 1), factors(j - 1, i), factors(j, i - 1), factors(j, i)};
    unroll(std::make_integer_sequence<int, 2>{}, [&](auto a) EF_LAMBDA {
      constexpr int A = decltype(a)::value;
      T entries[18];
      unroll(std::make_integer_sequence<int, 18>{}, [&](auto e) EF_LAMBDA {
        constexpr int E = decltype(e)::value, B = E / 9, DJ = E % 9 / 3 - 1, DI = E % 3 - 1;
        entries[E] = node_entry<kReduced, A, B, DJ, DI, 0>(law, cells[0], cells[1]) +
                     node_entry<kReduced, A, B, DJ, DI, 1>(law, cells[2], cells[3]);
      });
      T* o = values + indptr[A * long(n0) * n1 + k];
      for (int B = 0; B < 2; ++B) each_neighbour(n0, n1, j, i, [&](int e) EF_LAMBDA { *o++ = entries[9 * B + e]; });
    });
  }
};

// Both rows of D(u) of one node, in CSR order.
template <bool kReduced, class T>
struct ContractionBody {
  CellLaw<T> law;
  int n0, n1;
  const T* u;
  const long long* indptr;
  T* values;
  EF_HD void operator()(int, long k) const {
    const int j = row_of(k, n1), i = column_of(k, n1);
    const long n = long(n0) * n1;
    T entries[2][9] = {};
    for (int cell = 0; cell < 4; ++cell) {  // left above, right above, left below, right below
      const int cj = j - 1 + cell / 2, ci = i - 1 + cell % 2, own = 3 - cell;
      if (cj < 0 || cj >= n0 - 1 || ci < 0 || ci >= n1 - 1) continue;
      const Corners<T> c = corners_at(u + long(cj) * n1 + ci, n1), d = corners_at(u + n + long(cj) * n1 + ci, n1);
      for (int q = 0; q < 4; ++q) {
        const CornerForces<T> f = cell_force<kReduced>(law, {T(q == 0), T(q == 1), T(q == 2), T(q == 3)}, c, d);
        const T fu[4] = {f.u.a, f.u.b, f.u.c, f.u.d}, fv[4] = {f.v.a, f.v.b, f.v.c, f.v.d};
        const int e = 3 * (cell / 2 + q / 2) + cell % 2 + q % 2;  // the neighbour at corner q
        entries[0][e] += fu[own], entries[1][e] += fv[own];
      }
    }
    for (int A = 0; A < 2; ++A) {
      T* o = values + indptr[A * n + k];
      each_neighbour(n0, n1, j, i, [&](int e) EF_LAMBDA { *o++ = entries[A][e]; });
    }
  }
};

struct ProductTerm {
  const double *a, *b;
  long n;
  EF_HD void operator()(int m, long k, double* sum) const { sum[0] += a[n * m + k] * b[n * m + k]; }
};

struct StoreSum {
  double* out;
  EF_HD void operator()(int m, const double* sum) const { out[m] = sum[0]; }
};

// Launches.

EF_ANY_QUEUE
template <class T, class Out, class Queue>
EF_HD void launch_force(const Queue& queue, const GridForm<T>& g, long batch, Fields<const T> x, const T* u, const Out& out) {
  const long n = long(g.n0) * g.n1;
  if (g.reduced)
    queue.template gather<T>(batch, g.n0, g.n1, ForceCells<true, T>{g.law, g.n1, n, x, u}, out);
  else
    queue.template gather<T>(batch, g.n0, g.n1, ForceCells<false, T>{g.law, g.n1, n, x, u}, out);
}

template <class T, class Queue>
void launch_sensitivity(const Queue& queue, const GridForm<T>& g, long batch, const T* u, const T* v, T* out) {
  const long n = long(g.n0) * g.n1;
  const StoreNode<T> store{out, n};
  if (g.reduced)
    queue.template gather<T>(batch, g.n0, g.n1, SensitivityCells<true, T>{g.law, g.n1, n, u, v}, store);
  else
    queue.template gather<T>(batch, g.n0, g.n1, SensitivityCells<false, T>{g.law, g.n1, n, u, v}, store);
}

template <template <bool, class> class Body, class T, class Queue>
void launch_rows(const Queue& queue, const GridForm<T>& g, const T* field, const long long* indptr, T* values) {
  const long n = long(g.n0) * g.n1;
  if (g.reduced)
    queue.each(1, n, Body<true, T>{g.law, g.n0, g.n1, field, indptr, values});
  else
    queue.each(1, n, Body<false, T>{g.law, g.n0, g.n1, field, indptr, values});
}

}  // namespace elastofast
