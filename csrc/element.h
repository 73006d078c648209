// Mathematics of one cell with multilinear displacement and modulus, in D dimensions. Shared by CPU and CUDA.
//
// Local coordinates s_0 ... s_(D-1) run over [-1, 1]. Every field is written in modes, the products of a subset of the local
// coordinates: mode m is the product of the s_a with bit a set in m, and
//     g(s) = sum_m g_m prod_(a in m) s_a.
// With 2 Gauss points along each axis the square of a coordinate is 1/3, so that the product of the modes p and q is the
// mode p ^ q times 3^-|p & q|, and the mean of mode m squared is 3^-|m|. This "moment form" equals quadrature by 2^D Gauss
// points exactly and needs no loop over them.
//
// kReduced: the lambda term acts on the mean dilatation of the cell only (mean-dilatation / selective reduced integration,
// Hughes 2000, section 4.4): plane strain and volumes without locking. Otherwise it is integrated fully.
#pragma once
#include "host_device.h"

namespace elastofast {

// Constants of a cell, with its volume folded into the Lame numbers.
template <class T, int D>
struct ElementLaw {
  T g[D];        // 2 / spacing: d/d(axis a) = g_a d/ds_a
  T lambda, mu;  // Lame numbers per unit modulus, times the volume of the cell
};

template <class T, int D>
EF_HD ElementLaw<T, D> element_law(const double* spacing, double lambda, double mu) {
  ElementLaw<T, D> law{};
  for (int a = 0; a < D; ++a) law.g[a] = T(2 / spacing[a]), lambda *= spacing[a], mu *= spacing[a];
  law.lambda = T(lambda), law.mu = T(mu);
  return law;
}

// Corner c lies on the plus side of axis a if bit D - 1 - a of c is set: corners are numbered row by row, as nodes are.
template <int D>
EF_HD constexpr int corner_bit(int axis) { return 1 << (D - 1 - axis); }
template <int D>
EF_HD constexpr int corner_of_mode(int mode) {  // the corner on the plus side of the axes in the mode
  int corner = 0;
  for (int a = 0; a < D; ++a)
    if (mode >> a & 1) corner |= corner_bit<D>(a);
  return corner;
}
EF_HD constexpr int bits_in(int m) { return m ? (m & 1) + bits_in(m >> 1) : 0; }
EF_HD constexpr double third_to(int power) { return power ? third_to(power - 1) / 3 : 1.0; }
// Sign of a mode at a corner.
template <int D>
EF_HD constexpr int mode_sign(int mode, int corner) {
  return bits_in(corner_of_mode<D>(mode) & ~corner) % 2 ? -1 : 1;
}

template <int N, class Body>
EF_HD void unrolled(Body body) {
  unroll(std::make_integer_sequence<int, N>{}, body);
}

// Modes of corner values, times 2^D: sums and differences along the last axis first.
template <int D, class V>
EF_HD void to_modes(const V* corner, V* mode) {
  V w[1 << D];
  unrolled<1 << D>([&](auto c) EF_LAMBDA { w[decltype(c)::value] = corner[decltype(c)::value]; });
  unrolled<D>([&](auto k) EF_LAMBDA {
    constexpr int kBit = 1 << decltype(k)::value;
    unrolled<1 << D>([&](auto c) EF_LAMBDA {
      constexpr int C = decltype(c)::value;
      if constexpr (!(C & kBit)) {
        const V low = w[C], high = w[C | kBit];
        w[C] = low + high, w[C | kBit] = high - low;
      }
    });
  });
  unrolled<1 << D>([&](auto m) EF_LAMBDA { mode[decltype(m)::value] = w[corner_of_mode<D>(decltype(m)::value)]; });
}

// The transpose: value at each corner of a field with such modes. Along axis 0 first.
template <int D, class V>
EF_HD void from_modes(const V* mode, V* corner) {
  unrolled<1 << D>([&](auto m) EF_LAMBDA { corner[corner_of_mode<D>(decltype(m)::value)] = mode[decltype(m)::value]; });
  unrolled<D>([&](auto k) EF_LAMBDA {
    constexpr int kBit = corner_bit<D>(decltype(k)::value);
    unrolled<1 << D>([&](auto c) EF_LAMBDA {
      constexpr int C = decltype(c)::value;
      if constexpr (!(C & kBit)) {
        const V even = corner[C], odd = corner[C | kBit];
        corner[C] = even - odd, corner[C | kBit] = even + odd;
      }
    });
  });
}

// The same of a field without a mean.
template <int D, class V>
EF_HD void from_varying_modes(const V* mode, V* corner) {
  if constexpr (D == 1) {
    corner[0] = -mode[1], corner[1] = mode[1];
  } else {
    constexpr int kHalf = 1 << (D - 1);
    V odd_modes[kHalf], even_modes[kHalf], odd[kHalf], even[kHalf];  // along axis 0
    unrolled<kHalf>([&](auto m) EF_LAMBDA {
      constexpr int M = decltype(m)::value;
      odd_modes[M] = mode[2 * M + 1];
      if constexpr (M > 0) even_modes[M] = mode[2 * M];
    });
    from_modes<D - 1>(odd_modes, odd);
    from_varying_modes<D - 1>(even_modes, even);
    unrolled<kHalf>([&](auto c) EF_LAMBDA {
      constexpr int C = decltype(c)::value;
      corner[C] = even[C] - odd[C], corner[C + kHalf] = even[C] + odd[C];
    });
  }
}

// Modes of a displacement but for its mean, times 2^D: differences first, which are exact where displacements hardly vary.
template <int D, class V>
EF_HD void varying_modes(const V* corner, V* mode) {
  unrolled<D>([&](auto k) EF_LAMBDA {  // the modes with axis A and no axis behind it
    constexpr int A = D - 1 - decltype(k)::value, kAhead = 1 << A, kBehind = 1 << (D - 1 - A);
    V w[1 << D];  // differences along A, [corner ahead of A][corner behind A]
    unrolled<kAhead * kBehind>([&](auto c) EF_LAMBDA {
      constexpr int C = decltype(c)::value, kLow = C / kBehind * 2 * kBehind + C % kBehind;
      w[C] = corner[kLow + kBehind] - corner[kLow];
    });
    unrolled<D - 1 - A>([&](auto b) EF_LAMBDA {  // sums along the axes behind
      constexpr int kBit = 1 << decltype(b)::value;
      unrolled<kAhead * kBehind>([&](auto c) EF_LAMBDA {
        constexpr int C = decltype(c)::value;
        if constexpr (C % kBehind % (2 * kBit) == 0) w[C] += w[C + kBit];
      });
    });
    unrolled<A>([&](auto b) EF_LAMBDA {  // sums and differences along those ahead
      constexpr int kBit = kBehind << decltype(b)::value;
      unrolled<kAhead * kBehind>([&](auto c) EF_LAMBDA {
        constexpr int C = decltype(c)::value;
        if constexpr (C % kBehind == 0 && !(C & kBit)) {
          const V low = w[C], high = w[C + kBit];
          w[C] = low + high, w[C + kBit] = high - low;
        }
      });
    });
    unrolled<kAhead>([&](auto m) EF_LAMBDA {  // mode bits of the axes ahead: axis a is bit A - 1 - a of C / kBehind
      constexpr int M = decltype(m)::value, C = corner_of_mode<A>(M);
      mode[M | 1 << A] = w[C * kBehind];
    });
  });
}

// Calls body(p) for the modes of the strain of the axes a and b (a == b: normal): those without the axes of differentiation.
template <int D, int A, int B, class Body>
EF_HD void strain_modes(Body body) {
  unrolled<1 << D>([&](auto p) EF_LAMBDA {
    constexpr int P = decltype(p)::value, kBoth = 1 << A | 1 << B;
    if constexpr ((P & kBoth) != kBoth) body(p);
  });
}

// Calls body(a, b) for the pairs of axes a < b.
template <int D, class Body>
EF_HD void axis_pairs(Body body) {
  unrolled<D * D>([&](auto k) EF_LAMBDA {
    constexpr int A = decltype(k)::value / D, B = decltype(k)::value % D;
    if constexpr (A < B) body(std::integral_constant<int, A>{}, std::integral_constant<int, B>{});
  });
}

// Modes of all strains: normal[a][p], and shear (twice the tensor's component) [a][b][p], a < b.
template <int D, class V>
struct Strains {
  V normal[D][1 << D], shear[D][D][1 << D];
};

// Strains from the modes of a displacement; derivatives along axis a are multiplied by scale[a].
template <int D, bool kUnitFirst, class V, class T>
EF_HD void strains(const T* scale, const V (&u)[D][1 << D], Strains<D, V>& e) {
  auto scaled = [&](auto axis, const V& v) EF_LAMBDA {
    constexpr int A = decltype(axis)::value;
    if constexpr (kUnitFirst && A == 0) return v;
    else return v * scale[A];
  };
  unrolled<D>([&](auto a) EF_LAMBDA {
    constexpr int A = decltype(a)::value;
    strain_modes<D, A, A>([&](auto p) EF_LAMBDA {
      constexpr int P = decltype(p)::value;
      e.normal[A][P] = scaled(a, u[A][P | 1 << A]);
    });
  });
  axis_pairs<D>([&](auto a, auto b) EF_LAMBDA {
    constexpr int A = decltype(a)::value, B = decltype(b)::value;
    strain_modes<D, A, B>([&](auto p) EF_LAMBDA {
      constexpr int P = decltype(p)::value;
      if constexpr (P >> A & 1) e.shear[A][B][P] = scaled(b, u[A][P | 1 << B]);
      else if constexpr (P >> B & 1) e.shear[A][B][P] = scaled(a, u[B][P | 1 << A]);
      else e.shear[A][B][P] = scaled(b, u[A][P | 1 << B]) + scaled(a, u[B][P | 1 << A]);
    });
  });
}

// Calls body(a) for the axes but K.
template <int D, int K, class Body>
EF_HD void other_axes(Body body) {
  unrolled<D>([&](auto a) EF_LAMBDA {
    if constexpr (decltype(a)::value != K) body(a);
  });
}

template <int kPower, class T>
EF_HD T scaled(T value, T weight) {
  if constexpr (kPower == 0) return value;
  else return value * weight;
}

// Mode P of modulus times strain, both given by their modes; part[k] holds the modes of the strain times 3^-k.
template <int D, int A, int B, int P, class V>
EF_HD V product_mode(const V* x, const V (&part)[D][1 << D]) {
  V sum = x[P] * part[0][0];
  strain_modes<D, A, B>([&](auto q) EF_LAMBDA {
    constexpr int Q = decltype(q)::value;
    if constexpr (Q > 0) sum += x[P ^ Q] * part[bits_in(Q & ~P)][Q];
  });
  return sum;
}

template <int D, int A, int B, class V, class T>
EF_HD void strain_parts(const V* strain, V (&part)[D][1 << D]) {
  strain_modes<D, A, B>([&](auto q) EF_LAMBDA {
    constexpr int Q = decltype(q)::value;
    part[0][Q] = strain[Q];
    unrolled<bits_in(Q)>([&](auto k) EF_LAMBDA {
      constexpr int K = decltype(k)::value + 1;
      part[K][Q] = strain[Q] * T(third_to(K));
    });
  });
}

// The modes that the strain itself has.
template <int D, int A, int B, class V, class T>
EF_HD void times_modulus(const V* x, const V* strain, V* stress) {
  V part[D][1 << D];
  strain_parts<D, A, B, V, T>(strain, part);
  strain_modes<D, A, B>([&](auto p) EF_LAMBDA {
    constexpr int P = decltype(p)::value;
    stress[P] = product_mode<D, A, B, P>(x, part);
  });
}

// f = K(x) u of one cell. Modes are computed without their constant factors, and strains are divided by g_0 / 2^D; the
// constants of the law contain all these factors instead.
template <bool kReduced, int D, class V, class T>
EF_HD void element_force(const ElementLaw<T, D>& k, const V (&x)[1 << D], const V (&u)[D][1 << D], V (&f)[D][1 << D]) {
  const T unit = k.g[0] * k.g[0] * T(1.0 / (1 << 3 * D));
  T ratio[D], mu[D], lambda[D], normal[D];
  unrolled<D>([&](auto a) EF_LAMBDA {
    constexpr int A = decltype(a)::value;
    ratio[A] = A ? k.g[A] / k.g[0] : T(1), mu[A] = k.mu * unit, lambda[A] = k.lambda * unit;
    normal[A] = kReduced ? mu[A] + mu[A] : lambda[A] + mu[A] + mu[A];
    if constexpr (A > 0) mu[A] *= ratio[A], lambda[A] *= ratio[A], normal[A] *= ratio[A];
  });
  V xm[1 << D], um[D][1 << D];
  to_modes<D>(x, xm);
  unrolled<D>([&](auto a) EF_LAMBDA { varying_modes<D>(u[decltype(a)::value], um[decltype(a)::value]); });
  Strains<D, V> e, stress;
  strains<D, true>(ratio, um, e);
  V dilatation = e.normal[0][0];
  unrolled<D - 1>([&](auto a) EF_LAMBDA { dilatation += e.normal[decltype(a)::value + 1][0]; });
  const V mean = xm[0] * dilatation;
  unrolled<D>([&](auto a) EF_LAMBDA {
    constexpr int A = decltype(a)::value;
    times_modulus<D, A, A, V, T>(xm, e.normal[A], stress.normal[A]);
  });
  axis_pairs<D>([&](auto a, auto b) EF_LAMBDA {
    constexpr int A = decltype(a)::value, B = decltype(b)::value;
    times_modulus<D, A, B, V, T>(xm, e.shear[A][B], stress.shear[A][B]);
  });
  unrolled<D>([&](auto component) EF_LAMBDA {
    constexpr int K = decltype(component)::value;
    V fm[1 << D];
    unrolled<1 << D>([&](auto mode) EF_LAMBDA {
      constexpr int M = decltype(mode)::value;
      if constexpr (M > 0) {
        const T weight = T(third_to(bits_in(M) - 1));
        constexpr bool kNormal = M >> K & 1, kAlone = M == 1 << K;
        V sum = {};
        if constexpr (kNormal) sum = stress.normal[K][M ^ 1 << K] * scaled<bits_in(M) - 1>(normal[K], weight);
        if constexpr (kReduced && kAlone) sum += mean * lambda[K];
        if constexpr (!kReduced && kAlone)
          other_axes<D, K>([&](auto a) EF_LAMBDA { sum += stress.normal[decltype(a)::value][0] * lambda[K]; });
        other_axes<D, K>([&](auto a) EF_LAMBDA {
          constexpr int A = decltype(a)::value, kFirst = A < K ? A : K, kSecond = A < K ? K : A;
          if constexpr (M >> A & 1) {
            const V term = stress.shear[kFirst][kSecond][M ^ 1 << A] * scaled<bits_in(M) - 1>(mu[A], weight);
            if constexpr (kNormal || (M & ((1 << A) - 1) & ~(1 << K))) sum += term;
            else sum = term;
          }
        });
        if constexpr (!kReduced && kNormal && !kAlone)
          other_axes<D, K>([&](auto a) EF_LAMBDA {
            constexpr int A = decltype(a)::value;
            V part[D][1 << D];
            strain_parts<D, A, A, V, T>(e.normal[A], part);
            sum += product_mode<D, A, A, M ^ 1 << K>(xm, part) * (lambda[K] * weight);
          });
        fm[M] = sum;
      }
    });
    from_varying_modes<D>(fm, f[K]);
  });
}

// Sum of products, those of each power of 1/3 by themselves.
template <int D, class V, class T>
struct ThirdSum {
  V sums[D];
  bool begun[D] = {};  // known when it is compiled
  template <int kPower>
  EF_HD void add(const V& a, const V& b) {
    if (begun[kPower]) sums[kPower] += a * b;
    else sums[kPower] = a * b;
    begun[kPower] = true;
  }
  EF_HD V total() const {
    V sum = {};
    bool first = true;
    unrolled<D>([&](auto k) EF_LAMBDA {
      constexpr int K = decltype(k)::value;
      if (!begun[K]) return;
      const V term = scaled<K>(sums[K], V{} + T(third_to(K)));
      sum = first ? term : sum + term;
      first = false;
    });
    return sum;
  }
};

// Derivative of v^T K(x) u by the modulus at each corner of one cell.
template <bool kReduced, int D, class V, class T>
EF_HD void element_sensitivity(const ElementLaw<T, D>& k, const V (&u)[D][1 << D], const V (&v)[D][1 << D], V (&out)[1 << D]) {
  T scale[D];
  unrolled<D>([&](auto a) EF_LAMBDA { scale[decltype(a)::value] = k.g[decltype(a)::value] * T(1.0 / (1 << D)); });
  V um[D][1 << D], vm[D][1 << D], q[1 << D];
  Strains<D, V> e, f;
  unrolled<D>([&](auto a) EF_LAMBDA {
    varying_modes<D>(u[decltype(a)::value], um[decltype(a)::value]);
    varying_modes<D>(v[decltype(a)::value], vm[decltype(a)::value]);
  });
  strains<D, false>(scale, um, e);
  strains<D, false>(scale, vm, f);
  V one = e.normal[0][0], other = f.normal[0][0];
  unrolled<D - 1>([&](auto a) EF_LAMBDA {
    one += e.normal[decltype(a)::value + 1][0], other += f.normal[decltype(a)::value + 1][0];
  });
  const T c = kReduced ? k.mu + k.mu : k.lambda + k.mu + k.mu;
  unrolled<1 << D>([&](auto mode) EF_LAMBDA {  // mode M of the energy density, from the modes P and P ^ M of the strains
    constexpr int M = decltype(mode)::value;
    ThirdSum<D, V, T> normal, dilatation, shear;
    unrolled<D>([&](auto a) EF_LAMBDA {
      constexpr int A = decltype(a)::value;
      strain_modes<D, A, A>([&](auto p) EF_LAMBDA {
        constexpr int P = decltype(p)::value, Q = P ^ M;
        if constexpr (!(Q >> A & 1)) normal.template add<bits_in(P & Q)>(e.normal[A][P], f.normal[A][Q]);
        if constexpr (!kReduced)
          other_axes<D, A>([&](auto b) EF_LAMBDA {
            constexpr int B = decltype(b)::value;
            if constexpr (!(Q >> B & 1)) dilatation.template add<bits_in(P & Q)>(e.normal[A][P], f.normal[B][Q]);
          });
      });
    });
    axis_pairs<D>([&](auto a, auto b) EF_LAMBDA {
      constexpr int A = decltype(a)::value, B = decltype(b)::value, kBoth = 1 << A | 1 << B;
      strain_modes<D, A, B>([&](auto p) EF_LAMBDA {
        constexpr int P = decltype(p)::value, Q = P ^ M;
        if constexpr ((Q & kBoth) != kBoth) shear.template add<bits_in(P & Q)>(e.shear[A][B][P], f.shear[A][B][Q]);
      });
    });
    // mode M of two normal strains along one axis: there is one but for M of all axes
    constexpr bool kNormal = bits_in(M) < D;
    V sum;
    if constexpr (kNormal) sum = normal.total() * c;
    else sum = shear.total() * k.mu;
    if constexpr (kReduced && M == 0) sum += one * other * k.lambda;
    if constexpr (!kReduced) sum += dilatation.total() * k.lambda;
    if constexpr (kNormal) sum += shear.total() * k.mu;
    q[M] = sum * T(third_to(bits_in(M)) / (1 << D));
  });
  unrolled<1 << D>([&](auto corner) EF_LAMBDA {
    constexpr int C = decltype(corner)::value;
    V sum = q[0];
    unrolled<(1 << D) - 1>([&](auto m) EF_LAMBDA {
      constexpr int M = decltype(m)::value + 1;
      if constexpr (mode_sign<D>(M, C) > 0) sum += q[M];
      else sum -= q[M];
    });
    out[C] = sum;
  });
}

// Inverse of a cell's block of the matrix of a homogeneous body, times the residual at the corners. Reflections leave the
// block as it is, so that it is block-diagonal: component k in mode c ^ (1 << k), for all k, makes one block for each c.
// blocks[c] holds the symmetric inverse of block c, packed by rows, for modes without their factors of 2^-D.
// Blocks in the order in which they are worked on, those with the constant mode of a component first, and the component with
// which a block's sums begin, which is that one. (The order decides about rounding.)
template <int D>
EF_HD constexpr int block_number(int k) {
  if (k < D) return 1 << k;
  int left = k - D;
  for (int c = 0; c < 1 << D; ++c)
    if (bits_in(c) != 1 && left-- == 0) return c;
  return 0;
}
template <int D>
EF_HD constexpr int block_start(int c) {
  for (int a = 0; a < D; ++a)
    if (c == 1 << a) return a;
  return 0;
}
template <int D>
constexpr int kBlockEntries = D * (D + 1) / 2;
template <int D>
EF_HD constexpr int block_entry(int p, int q) {
  return p <= q ? p * (2 * D - 1 - p) / 2 + q : q * (2 * D - 1 - q) / 2 + p;
}
template <int D, class V, class T, class S>
EF_HD void element_smooth(const T (*blocks)[kBlockEntries<D>], const S& scale, const V (&r)[D][1 << D], V (&z)[D][1 << D]) {
  V in[D][1 << D], out[D][1 << D];
  unrolled<D>([&](auto k) EF_LAMBDA { to_modes<D>(r[decltype(k)::value], in[decltype(k)::value]); });
  unrolled<1 << D>([&](auto number) EF_LAMBDA {
    constexpr int C = block_number<D>(decltype(number)::value), kFirst = block_start<D>(C);
    auto row = [&](auto p) EF_LAMBDA {
      constexpr int P = decltype(p)::value;
      V sum = in[kFirst][C ^ 1 << kFirst] * blocks[C][block_entry<D>(P, kFirst)];
      other_axes<D, kFirst>([&](auto q) EF_LAMBDA {
        constexpr int Q = decltype(q)::value;
        sum += in[Q][C ^ 1 << Q] * blocks[C][block_entry<D>(P, Q)];
      });
      out[P][C ^ 1 << P] = scale * sum;
    };
    row(std::integral_constant<int, kFirst>{});
    other_axes<D, kFirst>(row);
  });
  unrolled<D>([&](auto k) EF_LAMBDA { from_modes<D>(out[decltype(k)::value], z[decltype(k)::value]); });
}

}  // namespace elastofast
