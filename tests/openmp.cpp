// The five functions of OpenMP that the core is compiled to, over std::thread. ThreadSanitizer knows nothing of GCC's own
// OpenMP library, whose barriers it does not see; it follows threads that are started and joined. Used by .ci/sanitize.
#include <thread>
#include <vector>

namespace {
int wanted = 2;
thread_local int own_wanted = 0, number = 0, count = 1;
}  // namespace

extern "C" {
void omp_set_num_threads(int n) { own_wanted = n; }
int omp_get_max_threads() { return own_wanted ? own_wanted : wanted; }
int omp_get_num_threads() { return count; }
int omp_get_thread_num() { return number; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const int n = threads ? int(threads) : omp_get_max_threads();
  std::vector<std::thread> others;
  for (int k = 1; k < n; ++k)
    others.emplace_back([=] {
      number = k, count = n;
      body(data);
    });
  const int before = count;
  count = n;
  body(data);
  count = before;
  for (std::thread& other : others) other.join();
}
}
