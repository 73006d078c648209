// One rectangular bilinear cell with a bilinear modulus: the mathematics of element.h in two dimensions, for values at named
// corners, and the entries of the cell's stiffness matrix. Shared by CPU and CUDA.
//
// The local coordinates are s (axis 0) and t (axis 1), and the modes of a field are
//     g(s, t) = g_m + g_s s + g_t t + g_h s t.
#pragma once
#include "element.h"

namespace elastofast {

template <class T>
using CellLaw = ElementLaw<T, 2>;

// The form on a grid of n0 x n1 nodes.
template <class T>
struct GridForm {
  int n0, n1;
  bool reduced;
  CellLaw<T> law;
};

// The numbers by which Python describes a form.
struct FormSpec {
  int n0, n1;
  double h0, h1, lambda, mu;
  bool reduced;
  template <class T>
  GridForm<T> form() const {
    const double spacing[2] = {h0, h1};
    return {n0, n1, reduced, element_law<T, 2>(spacing, lambda, mu)};
  }
  long nodes() const { return long(n0) * n1; }
};

// Nodes of a cell: a = (s-, t-), b = (s-, t+), c = (s+, t-), d = (s+, t+).
template <class V>
struct Corners {
  V a, b, c, d;
};

// Moments <x>, <x s>, <x t>, <x s t> of a bilinear modulus given at the corners.
template <class V>
struct Moments {
  V m, s, t, h;
};

template <class V, class T = V>
EF_HD Moments<V> moments(const Corners<V>& x) {
  const V p = x.a + x.b, q = x.c + x.d, e = x.b - x.a, f = x.d - x.c;
  return {(p + q) * T(0.25), (q - p) * T(1.0 / 12), (e + f) * T(1.0 / 12), (f - e) * T(1.0 / 36)};
}

// Contributions of a cell to its corners, for each component.
template <class V>
struct CornerForces {
  Corners<V> u, v;
};

// K(x) (u, v) of one cell.
template <bool kReduced, class V, class T>
EF_HD CornerForces<V> cell_force(const CellLaw<T>& k, const Corners<V>& x, const Corners<V>& u, const Corners<V>& v) {
  const V modulus[4] = {x.a, x.b, x.c, x.d}, in[2][4] = {{u.a, u.b, u.c, u.d}, {v.a, v.b, v.c, v.d}};
  V f[2][4];
  element_force<kReduced, 2>(k, modulus, in, f);
  return {{f[0][0], f[0][1], f[0][2], f[0][3]}, {f[1][0], f[1][1], f[1][2], f[1][3]}};
}

// Derivative of (w, z)^T K(x) (u, v) by the modulus at each corner of one cell.
template <bool kReduced, class V, class T>
EF_HD Corners<V> cell_sensitivity(const CellLaw<T>& k, const Corners<V>& u, const Corners<V>& v, const Corners<V>& w,
                                  const Corners<V>& z) {
  const V one[2][4] = {{u.a, u.b, u.c, u.d}, {v.a, v.b, v.c, v.d}}, other[2][4] = {{w.a, w.b, w.c, w.d}, {z.a, z.b, z.c, z.d}};
  V out[4];
  element_sensitivity<kReduced, 2>(k, one, other, out);
  return {out[0], out[1], out[2], out[3]};
}

// Nine numbers of a cell, of which every entry of its stiffness matrix is a short sum.
template <class V>
struct StiffnessFactors {
  V m;           // <x>
  V tp, tm;      // <x (1 + t)^2>, <x (1 - t)^2>
  V sp, sm;      // <x (1 + s)^2>, <x (1 - s)^2>
  V x[2][2];     // <x (1 -+ s)(1 -+ t)> with the sign of s first
};

template <class V, class T = V>
EF_HD StiffnessFactors<V> stiffness_factors(const Moments<V>& x) {
  const V m43 = x.m * T(4.0 / 3), s2 = x.s + x.s, t2 = x.t + x.t;
  const V p = x.m - x.s, q = x.m + x.s, e = x.t - x.h, f = x.t + x.h;
  return {x.m, m43 + t2, m43 - t2, m43 + s2, m43 - s2, {{p - e, p + e}, {q - f, q + f}}};
}

// Entry of the cell stiffness: displacement component kA at corner (kS, kT) against kB at (kS2, kT2);
// corner index 0 is the minus side.
template <bool kReduced, int kA, int kS, int kT, int kB, int kS2, int kT2, class V, class T>
EF_HD V stiffness_entry(const CellLaw<T>& k, const StiffnessFactors<V>& f) {
  constexpr int sp = kS ? 1 : -1, tp = kT ? 1 : -1, sq = kS2 ? 1 : -1, tq = kT2 ? 1 : -1;
  const T q00 = k.g[0] * k.g[0] * T(1.0 / 16), q11 = k.g[1] * k.g[1] * T(1.0 / 16), q01 = k.g[0] * k.g[1] * T(1.0 / 16);
  const V m23 = f.m * T(2.0 / 3);
  if constexpr (kA == kB) {
    const V dd0 = kT == kT2 ? (kT ? f.tp : f.tm) : m23;  // mean of x d/ds d/ds without sign and scale
    const V dd1 = kS == kS2 ? (kS ? f.sp : f.sm) : m23;
    const T c = kReduced ? k.mu + k.mu : k.lambda + k.mu + k.mu;
    const T w0 = T(sp * sq) * q00 * (kA == 0 ? c : k.mu);
    const T w1 = T(tp * tq) * q11 * (kA == 1 ? c : k.mu);
    V r = dd0 * w0 + dd1 * w1;
    if constexpr (kReduced) r += f.m * (kA == 0 ? T(sp * sq) * q00 * k.lambda : T(tp * tq) * q11 * k.lambda);
    return r;
  } else if constexpr (kA == 0) {
    const V lam = kReduced ? f.m : f.x[kS2][kT];
    return lam * (T(sp * tq) * q01 * k.lambda) + f.x[kS][kT2] * (T(tp * sq) * q01 * k.mu);
  } else {
    return stiffness_entry<kReduced, 0, kS2, kT2, 1, kS, kT>(k, f);
  }
}

// Part of the entry (component A of a node, component B of its neighbour (DJ, DI)) from the cell row above (CJ = 0)
// or below (CJ = 1) the node; left holds the factors of the cell to the left, right those of the cell to the right.
template <bool kReduced, int A, int B, int DJ, int DI, int CJ, class V, class T>
EF_HD V node_entry(const CellLaw<T>& law, const StiffnessFactors<V>& left, const StiffnessFactors<V>& right) {
  constexpr int S = 1 - CJ, S2 = S + DJ;
  V r = {};
  if constexpr (S2 == 0 || S2 == 1) {
    if constexpr (DI <= 0) r += stiffness_entry<kReduced, A, S, 1, B, S2, 1 + DI>(law, left);
    if constexpr (DI >= 0) r += stiffness_entry<kReduced, A, S, 0, B, S2, DI>(law, right);
  }
  return r;
}

}  // namespace elastofast
