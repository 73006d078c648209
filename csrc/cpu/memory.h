// Memory of the hierarchy.
#pragma once
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace elastofast {

// Aligns arrays to cache lines, so that no vector load straddles two, and asks for huge pages for large arrays: a set-up
// touches tens of megabytes for the first time and a cycle reads all of them, so that page faults and address translation
// would cost much time.
template <class T>
struct Aligned {
  using value_type = T;
  static constexpr size_t kLine = 64, kHuge = size_t(1) << 21;

  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}

  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T), unit = bytes < kHuge ? kLine : kHuge, whole = (bytes + unit - 1) / unit * unit;
    void* p = std::aligned_alloc(unit, whole);
    if (!p) throw std::bad_alloc();
#if defined(__linux__)
    if (unit == kHuge) madvise(p, whole, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) { std::free(p); }
  // resize() does not set new elements to zero
  template <class U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U, class... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...);
  }
  friend bool operator==(const Aligned&, const Aligned&) { return true; }
  friend bool operator!=(const Aligned&, const Aligned&) { return false; }
};

using Floats = std::vector<float, Aligned<float>>;
using Doubles = std::vector<double, Aligned<double>>;

}  // namespace elastofast
