// Work over rows in chunks whose bounds do not depend on the number of threads, so that the rounding of sums does not either.
#pragma once
#include <omp.h>

#include <algorithm>
#include <vector>

namespace elastofast {

constexpr int kChunks = 16;     // at most, so that more than 16 threads find no work. Not studied
constexpr long kSerial = 8192;  // values in a chunk below which starting a thread costs more than it saves. Not studied

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

// Into how many bands the rows are split if each thread takes one band. For work that repeats some rows at the edges of
// bands, so that more bands cost more, and that forms no sums, so that results do not depend on the number of threads.
inline int band_count(int n, int width) { return std::min(omp_get_max_threads(), chunk_count(n, width)); }

}  // namespace elastofast
