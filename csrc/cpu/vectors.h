// Vectors of the processor's own width. Included by files that are compiled once for each instruction set, so everything in
// it is internal to these.
#pragma once
#include <cstddef>
#include <utility>

#include "../host_device.h"

namespace elastofast {
namespace {

// Cells are worked on several at a time in vectors of the processor's own width: the functions of cell.h take either
// one number or a vector of them.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class V, class T>
EF_HD V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T, class V>
EF_HD void store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Every second value from p on: p[0], p[2], ... or p[1], p[3], ...
template <class V, class T, size_t... Is>
EF_HD V strided(const T* p, int offset, std::index_sequence<Is...>) {
  const V a = load<V>(p), b = load<V>(p + sizeof...(Is));
  return offset ? __builtin_shufflevector(a, b, (2 * Is + 1)...) : __builtin_shufflevector(a, b, (2 * Is)...);
}
template <class V, class T>
EF_HD V even(const T* p) {
  if constexpr (sizeof(V) == sizeof(T)) return p[0];
  else return strided<V>(p, 0, std::make_index_sequence<sizeof(V) / sizeof(T)>{});
}
template <class V, class T>
EF_HD V odd(const T* p) {
  if constexpr (sizeof(V) == sizeof(T)) return p[1];
  else return strided<V>(p, 1, std::make_index_sequence<sizeof(V) / sizeof(T)>{});
}

// Calls body(c, V) so that all c of [lo, hi) are covered by vectors; the last one may overlap the one before.
template <class T, class Body>
EF_HD void for_vectors(int lo, int hi, Body body) {
  constexpr int kWidth = sizeof(Vector<T>) / sizeof(T);
  if (hi - lo >= kWidth) {
    for (int c = lo; c < hi; c += kWidth) body(c + kWidth <= hi ? c : hi - kWidth, Vector<T>{});
  } else {
    for (int c = lo; c < hi; ++c) body(c, T{});
  }
}

// Sum of n values, NaN or infinite if one of them is.
template <class T>
inline double sum(const T* f, size_t n) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (size_t i = 0; i < n; ++i) total += f[i];
  return total;
}

}  // namespace
}  // namespace elastofast
