// One function body for two compilers: inline on the CPU, __host__ __device__ under nvcc.
#pragma once
#include <utility>
#if defined(__CUDACC__)
#define EF_HD __host__ __device__ __forceinline__
#define EF_CALL __host__ __device__ __noinline__  // long and not in the iteration: compiled once
#define EF_LAMBDA
#define EF_UNROLL _Pragma("unroll")  // arrays then live in registers
#define EF_ANY_QUEUE _Pragma("nv_exec_check_disable")  // before a template that calls what its queue can do
#elif defined(EF_SMALL)  // where speed does not matter
#define EF_HD inline
#define EF_CALL inline
#define EF_LAMBDA
#define EF_UNROLL
#define EF_ANY_QUEUE
#else
#define EF_HD inline __attribute__((always_inline))
#define EF_CALL inline
#define EF_LAMBDA __attribute__((always_inline))
#define EF_UNROLL
#define EF_ANY_QUEUE
#endif

namespace elastofast {

// Calls body(integral_constant 0), ... (count - 1).
template <class Body, int... Is>
EF_HD void unroll(std::integer_sequence<int, Is...>, Body body) {
  (body(std::integral_constant<int, Is>{}), ...);
}

}  // namespace elastofast
