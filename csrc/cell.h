// Mathematics of one rectangular bilinear cell with a bilinear modulus. Shared by CPU and CUDA.
//
// Local coordinates s (axis 0) and t (axis 1) run over [-1, 1]. Every bilinear field is written in modes
//     g(s, t) = g_m + g_s s + g_t t + g_h s t,
// and the modulus enters through its cell moments <x>, <x s>, <x t>, <x s t> (and <x s^2> = <x t^2> = <x>/3 by
// 2 x 2 Gauss points). This "moment form" equals quadrature exactly and needs no quadrature loop.
//
// kReduced: the lambda term acts on the mean dilatation of the cell only (mean-dilatation / selective reduced
// integration, Hughes 2000, section 4.4): plane strain without locking. Otherwise it is integrated fully.
#pragma once
#include "host_device.h"

namespace elastofast {

// Constants of all cells of a grid, with the area of the cell folded into the Lame numbers.
template <class T>
struct CellLaw {
  T g0, g1;      // 2 / spacing: d/d(axis 0) = g0 d/ds, d/d(axis 1) = g1 d/dt
  T lambda, mu;  // Lame numbers per unit modulus, times cell area
};

template <class T>
EF_HD CellLaw<T> cell_law(double h0, double h1, double lambda, double mu) {
  return {T(2 / h0), T(2 / h1), T(lambda * h0 * h1), T(mu * h0 * h1)};
}

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
    return {n0, n1, reduced, cell_law<T>(h0, h1, lambda, mu)};
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

// Strains of a bilinear displacement:
//   e00 = e0 + e0t t,  e11 = e1 + e1s s,  2 e01 = g + gs s + gt t.
template <class V>
struct Strain {
  V e0, e0t, e1, e1s, g, gs, gt;
};

template <class V, class T>
EF_HD Strain<V> strain(const CellLaw<T>& k, const Corners<V>& u, const Corners<V>& v) {
  const T q0 = k.g0 * T(0.25), q1 = k.g1 * T(0.25);
  const V us = (u.c - u.a) + (u.d - u.b), ut = (u.b - u.a) + (u.d - u.c), uh = (u.d - u.c) - (u.b - u.a);
  const V vs = (v.c - v.a) + (v.d - v.b), vt = (v.b - v.a) + (v.d - v.c), vh = (v.d - v.c) - (v.b - v.a);
  return {us * q0, uh * q0, vt * q1, vh * q1, ut * q1 + vs * q0, uh * q1, vh * q0};
}

// Contributions of a cell to its corners, for each component.
template <class V>
struct CornerForces {
  Corners<V> u, v;
};

// K(x) (u, v) of one cell. Modes and moments are computed without their constant factors, and strains are divided by
// g0 / 4; the constants of the law contain all these factors instead.
template <bool kReduced, class V, class T>
EF_HD CornerForces<V> cell_force(const CellLaw<T>& k, const Corners<V>& x, const Corners<V>& u, const Corners<V>& v) {
  const T third = T(1.0 / 3), ratio = k.g1 / k.g0, unit = k.g0 * k.g0 * T(1.0 / 64);
  const T mu = k.mu * unit, lambda = k.lambda * unit, c = kReduced ? mu + mu : lambda + mu + mu;
  const T mu1 = mu * ratio, lambda1 = lambda * ratio, c1 = c * ratio;
  V p = x.a + x.b, q = x.c + x.d, r = x.b - x.a, s = x.d - x.c;
  const V xm = p + q, xs = q - p, xt = r + s, xh = s - r;
  r = u.b - u.a, s = u.d - u.c;  // differences first: they are exact where displacements hardly vary
  const V e0 = (u.c - u.a) + (u.d - u.b), ut = r + s, e0t = s - r;
  r = v.b - v.a, s = v.d - v.c;
  const V vs = (v.c - v.a) + (v.d - v.b), e1 = (r + s) * ratio, gt = s - r;
  const V e1s = gt * ratio, g = ut * ratio + vs, gs = e0t * ratio;
  const V e0t3 = e0t * third, e1s3 = e1s * third, gs3 = gs * third, gt3 = gt * third;
  const V xe0 = xm * e0 + xt * e0t3, xe0t = xt * e0 + xm * e0t;
  const V xe1 = xm * e1 + xs * e1s3, xe1s = xs * e1 + xm * e1s;
  const V w = xm * g + xs * gs3 + xt * gt3, ws = xs * g + xm * gs + xh * gt3, wt = xt * g + xh * gs3 + xm * gt;
  V fus, fvt, fuh = xe0t * (c * third) + ws * (mu1 * third), fvh = xe1s * (c1 * third) + wt * (mu * third);
  if constexpr (kReduced) {
    const V mean = xm * (e0 + e1);
    fus = xe0 * c + mean * lambda;
    fvt = xe1 * c1 + mean * lambda1;
  } else {
    fus = xe0 * c + xe1 * lambda;
    fvt = xe1 * c1 + xe0 * lambda1;
    fuh += (xt * e1 + xh * e1s3) * (lambda * third);
    fvh += (xs * e0 + xh * e0t3) * (lambda1 * third);
  }
  const V fut = w * mu1, fvs = w * mu;
  const V um = fuh - fus, up = fuh + fus, vm = fvh - fvs, vp = fvh + fvs;
  return {{um - fut, fut - up, -um - fut, fut + up}, {vm - fvt, fvt - vp, -vm - fvt, fvt + vp}};
}

// Derivative of v^T K(x) u by the modulus at each corner of one cell.
template <bool kReduced, class V, class T>
EF_HD Corners<V> cell_sensitivity(const CellLaw<T>& k, const Strain<V>& e, const Strain<V>& f) {
  const T third = T(1.0 / 3);
  const T c = kReduced ? k.mu + k.mu : k.lambda + k.mu + k.mu;
  V qm = (e.e0 * f.e0 + e.e1 * f.e1 + (e.e0t * f.e0t + e.e1s * f.e1s) * third) * c;
  V qs = (e.e1 * f.e1s + e.e1s * f.e1) * c;
  V qt = (e.e0 * f.e0t + e.e0t * f.e0) * c;
  V qh = (e.gs * f.gt + e.gt * f.gs) * k.mu;
  if constexpr (kReduced) {
    qm += (e.e0 + e.e1) * (f.e0 + f.e1) * k.lambda;
  } else {
    qm += (e.e0 * f.e1 + e.e1 * f.e0) * k.lambda;
    qs += (e.e0 * f.e1s + e.e1s * f.e0) * k.lambda;
    qt += (e.e0t * f.e1 + e.e1 * f.e0t) * k.lambda;
    qh += (e.e0t * f.e1s + e.e1s * f.e0t) * k.lambda;
  }
  qm += (e.g * f.g + (e.gs * f.gs + e.gt * f.gt) * third) * k.mu;
  qs += (e.g * f.gs + e.gs * f.g) * k.mu;
  qt += (e.g * f.gt + e.gt * f.g) * k.mu;
  qm = qm * T(0.25);
  qs = qs * T(1.0 / 12);
  qt = qt * T(1.0 / 12);
  qh = qh * T(1.0 / 36);
  return {qm - qs - qt + qh, qm - qs + qt - qh, qm + qs - qt - qh, qm + qs + qt + qh};
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
  const T q00 = k.g0 * k.g0 * T(1.0 / 16), q11 = k.g1 * k.g1 * T(1.0 / 16), q01 = k.g0 * k.g1 * T(1.0 / 16);
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
