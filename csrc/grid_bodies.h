// Bodies of the form on a grid: each index gathers what the cells around its nodes give, in a fixed order.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "launch.h"

namespace elastofast {

// Row and column of an index; 32-bit division is several times faster on a GPU.
EF_HD int row_of(long k, int width) { return int(unsigned(k) / unsigned(width)); }
EF_HD int column_of(long k, int width) { return int(unsigned(k) % unsigned(width)); }

// One column of nodes over a strip of rows. Longer strips work out fewer cells twice, shorter ones fill the device.
struct Strips {
  int n0, n1, rows;

  // `share`: how many indices keep the device busy.
  static EF_HD Strips over(int n0, int n1, long share) {
    constexpr long kLongest = 16;
    const long rows = long(n0) * n1 / (share < 1 ? 1 : share);
    return {n0, n1, int(rows < 1 ? 1 : rows > kLongest ? kLongest : rows)};
  }
  EF_HD long count() const { return long((n0 + rows - 1) / rows) * n1; }
  EF_HD int column(long k) const { return column_of(k, n1); }
  EF_HD int begin(long k) const { return row_of(k, n1) * rows; }
  EF_HD int end(long k) const {
    const int e = begin(k) + rows;
    return e < n0 ? e : n0;
  }
};

template <class T>
EF_HD Corners<T> corners_at(const T* p, int n1) {
  return {p[0], p[1], p[n1], p[n1 + 1]};
}

// Three columns of two neighbouring rows of some fields, moving down with a strip: each value is read once.
template <class T, int kFields>
struct Window {
  const T* next[kFields];  // of the column in the middle, in the row to come
  int n1, left, right;
  T top[kFields][3], bottom[kFields][3];

  EF_HD Window(const Strips& s, long k, const T* const (&fields)[kFields]) : n1(s.n1) {
    const int i = s.column(k), j = s.begin(k);
    left = i > 0 ? -1 : 0, right = i < n1 - 1 ? 1 : 0;
    EF_UNROLL
    for (int f = 0; f < kFields; ++f) next[f] = fields[f] + long(j > 0 ? j - 1 : 0) * n1 + i;
    read();
  }
  EF_HD void read() {
    EF_UNROLL
    for (int f = 0; f < kFields; ++f) {
      bottom[f][0] = next[f][left], bottom[f][1] = next[f][0], bottom[f][2] = next[f][right];
      next[f] += n1;
    }
  }
  EF_HD void operator()() {
    EF_UNROLL
    for (int f = 0; f < kFields; ++f)
      EF_UNROLL
      for (int c = 0; c < 3; ++c) top[f][c] = bottom[f][c];
    read();
  }
  // Of the cell to the left (side 0) or right (side 1).
  EF_HD Corners<T> corners(int f, int side) const {
    return {top[f][side], top[f][side + 1], bottom[f][side], bottom[f][side + 1]};
  }
};

// Sums of two components at the nodes of one strip: cell(j, i, side) gives CornerForces of the cell below row j to the
// left (side 0) or right (side 1) of the strip, move() comes before those of each row, out(j, u, v) takes the sums.
template <class T, class Move, class Cell, class Out>
EF_HD void gather_two(const Strips& s, long k, Move& move, Cell cell, Out out) {
  const int i = s.column(k), j0 = s.begin(k), j1 = s.end(k);
  const bool left = i > 0, right = i < s.n1 - 1;
  T u = 0, v = 0;  // what the cells above give
  if (j0 > 0) {
    move();
    if (left) {
      const CornerForces<T> f = cell(j0 - 1, i - 1, 0);
      u += f.u.d, v += f.v.d;
    }
    if (right) {
      const CornerForces<T> f = cell(j0 - 1, i, 1);
      u += f.u.c, v += f.v.c;
    }
  }
  for (int j = j0; j < j1; ++j) {
    T u2 = 0, v2 = 0;
    if (j < s.n0 - 1) {
      move();
      if (left) {
        const CornerForces<T> f = cell(j, i - 1, 0);
        u += f.u.b, v += f.v.b, u2 += f.u.d, v2 += f.v.d;
      }
      if (right) {
        const CornerForces<T> f = cell(j, i, 1);
        u += f.u.a, v += f.v.a, u2 += f.u.c, v2 += f.v.c;
      }
    }
    out(j, u, v);
    u = u2, v = v2;
  }
}

// A field of each batch member; stride 0 where all share one.
template <class T>
struct Fields {
  T* data;
  long stride;
  EF_HD T* of(int b) const { return data + b * stride; }
};

// What becomes of the forces: out(b, node, force of component 0, of component 1).
template <class T>
struct StoreForce {
  T* f;
  long n;
  EF_HD void operator()(int b, long node, T u, T v) const {
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
  EF_HD void operator()(int b, long node, T u, T v) const {
    const long at = 2 * n * b + node;
    if (shift) u += shift[at] * d[at], v += shift[at + n] * d[at + n];
    f[at] = fixed[node] ? T(0) : u;
    f[at + n] = fixed[node + n] ? T(0) : v;
  }
};

template <bool kReduced, class T, class Out>
struct ForceBody {
  CellLaw<T> law;
  Strips strips;
  Fields<const T> x;
  const T* u;
  Out out;
  EF_HD void operator()(int b, long k) const {
    const int n1 = strips.n1;
    const long n = long(strips.n0) * n1;
    const T* ub = u + 2 * n * b;
    Window<T, 3> w(strips, k, {x.of(b), ub, ub + n});
    gather_two<T>(
        strips, k, w,
        [&](int, int, int side) EF_LAMBDA {
          return cell_force<kReduced>(law, w.corners(0, side), w.corners(1, side), w.corners(2, side));
        },
        [&](int j, T fu, T fv) { out(b, long(j) * n1 + strips.column(k), fu, fv); });
  }
};

template <bool kReduced, class T>
struct SensitivityBody {
  CellLaw<T> law;
  Strips strips;
  const T *u, *v;
  T* g;
  EF_HD void operator()(int b, long k) const {
    const int n1 = strips.n1;
    const long n = long(strips.n0) * n1;
    const T *ub = u + 2 * n * b, *vb = v + 2 * n * b;
    Window<T, 4> w(strips, k, {ub, ub + n, vb, vb + n});
    gather_two<T>(
        strips, k, w,
        [&](int, int, int side) EF_LAMBDA {
          const Strain<T> e = strain(law, w.corners(0, side), w.corners(1, side));
          const Strain<T> f = strain(law, w.corners(2, side), w.corners(3, side));
          return CornerForces<T>{cell_sensitivity<kReduced>(law, e, f), {}};
        },
        [&](int j, T sum, T) { g[n * b + long(j) * n1 + strips.column(k)] = sum; });
  }
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

// Launches.

EF_ANY_QUEUE
template <class T, class Out, class Queue>
EF_HD void launch_force(const Queue& queue, const GridForm<T>& g, long batch, Fields<const T> x, const T* u, Out out) {
  const Strips s = Strips::over(g.n0, g.n1, queue.share(batch));
  if (g.reduced)
    queue.each(batch, s.count(), ForceBody<true, T, Out>{g.law, s, x, u, out});
  else
    queue.each(batch, s.count(), ForceBody<false, T, Out>{g.law, s, x, u, out});
}

template <class T, class Queue>
void launch_sensitivity(const Queue& queue, const GridForm<T>& g, long batch, const T* u, const T* v, T* out) {
  const Strips s = Strips::over(g.n0, g.n1, queue.share(batch));
  if (g.reduced)
    queue.each(batch, s.count(), SensitivityBody<true, T>{g.law, s, u, v, out});
  else
    queue.each(batch, s.count(), SensitivityBody<false, T>{g.law, s, u, v, out});
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
