// Chooses the kernels for this processor. ELASTOFAST_ISA overrides the choice. EF_ONE_INSTRUCTION_SET: there is one only, named
// baseline, as in builds of .ci/sanitize.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace elastofast {

#if defined(__x86_64__) && !defined(EF_ONE_INSTRUCTION_SET)
extern const KernelTable kernels_v2, kernels_v3, kernels_v4;
#else
extern const KernelTable kernels_baseline;
#endif

namespace {

struct Candidate {
  const KernelTable* table;
  bool runs;
};

const Candidate* candidates() {  // best first, ends with a null table
#if defined(__x86_64__) && !defined(EF_ONE_INSTRUCTION_SET)
  static const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  static const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512cd");
  static const Candidate list[] = {{&kernels_v4, v4}, {&kernels_v3, v3}, {&kernels_v2, true}, {nullptr, false}};
#else
  static const Candidate list[] = {{&kernels_baseline, true}, {nullptr, false}};
#endif
  return list;
}

const KernelTable* first_choice() {
  const KernelTable* table = nullptr;
  const char* wanted = std::getenv("ELASTOFAST_ISA");
  for (const Candidate* c = candidates(); c->table; ++c)
    if (c->runs && (!table || (wanted && !std::strcmp(wanted, c->table->name)))) table = c->table;
  return table;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{first_choice()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *chosen().load(std::memory_order_acquire); }

bool select_kernels(const char* name) {
  for (const Candidate* c = candidates(); c->table; ++c)
    if (c->runs && !std::strcmp(name, c->table->name)) {
      chosen().store(c->table, std::memory_order_release);
      return true;
    }
  return false;
}

const char* available_kernels(int i) {
  for (const Candidate* c = candidates(); c->table; ++c)
    if (c->runs && i-- == 0) return c->table->name;
  return nullptr;
}

}  // namespace elastofast
