// Work over rows in chunks whose bounds do not depend on the number of threads, so that sums do not either.
#pragma once
#include <omp.h>

#include <algorithm>
#include <vector>

namespace elastofast {

constexpr int kChunks = 16;
constexpr long kSerial = 8192;  // nodes below which starting a thread costs more than it saves

inline int chunk_count(int n, int width) {
  return int(std::clamp(long(n) * width / kSerial, 1L, long(std::min(n, kChunks))));
}

// body(begin, end) for chunks of the rows [0, n), each row holding `width` values.
template <class Body>
void for_rows(int n, int width, Body body) {
  const int chunks = chunk_count(n, width);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int c = 0; c < chunks; ++c) body(int(long(n) * c / chunks), int(long(n) * (c + 1) / chunks));
}

// The same with a value summed over the chunks.
template <class Body>
double sum_rows(int n, int width, Body body) {
  double parts[kChunks] = {};
  const int chunks = chunk_count(n, width);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int c = 0; c < chunks; ++c) parts[c] = body(int(long(n) * c / chunks), int(long(n) * (c + 1) / chunks));
  double total = 0;
  for (int c = 0; c < chunks; ++c) total += parts[c];
  return total;
}

// Bands of rows, one a thread: for work that is the dearer the more bands there are, and that sums nothing up.
inline int band_count(int n, int width) { return std::min(omp_get_max_threads(), chunk_count(n, width)); }

}  // namespace elastofast
