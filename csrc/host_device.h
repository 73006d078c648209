// One function body for two compilers: plain inline on the CPU, __host__ __device__ under nvcc.
#pragma once
#if defined(__CUDACC__)
#define EF_HD __host__ __device__ __forceinline__
#else
#define EF_HD inline __attribute__((always_inline))
#endif
