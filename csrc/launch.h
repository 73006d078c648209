// Where device bodies run. A body is a function of (batch member, index) and its own arguments, with no communication
// between indices; the CUDA queue runs it in one thread each, the host queue in a loop, so that every index computation
// can be tested without a GPU.
#pragma once
#include <cstring>

#include "host_device.h"

namespace elastofast {

// Runs bodies on the processor, for tests.
struct HostQueue {
  long width = 1;  // indices that are wanted in flight at once

  template <class Body>
  void each(long batch, long n, const Body& body) const {
    for (long b = 0; b < batch; ++b)
      for (long k = 0; k < n; ++k) body(int(b), k);
  }
  void zero(void* data, size_t bytes) const { std::memset(data, 0, bytes); }
};

// Runs bodies on a CUDA device, in the order of a stream.
struct CudaQueue {
  void* stream;
  long width;

  CudaQueue(int device, void* stream);  // makes the device current
  template <class Body>
  void each(long batch, long n, const Body& body) const;
  void zero(void* data, size_t bytes) const;
};

}  // namespace elastofast

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace elastofast {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class Body>
__global__ void __launch_bounds__(256) run(long n, const __grid_constant__ Body body) {
  const long k = long(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < n) body(int(blockIdx.y), k);
}

template <class Body>
void CudaQueue::each(long batch, long n, const Body& body) const {
  if (batch == 0 || n == 0) return;
  const unsigned threads = n < 256 ? unsigned((n + 31) / 32 * 32) : 256;
  const dim3 grid(unsigned((n + threads - 1) / threads), unsigned(batch));
  run<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(n, body);
  check(cudaGetLastError(), "launch");
}

inline void CudaQueue::zero(void* data, size_t bytes) const {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

inline CudaQueue::CudaQueue(int device, void* stream) : stream(stream) {
  check(cudaSetDevice(device), "cudaSetDevice");
  int processors = 0, threads = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device), "cudaDeviceGetAttribute");
  width = long(processors) * threads / 2;
}

}  // namespace elastofast
#endif
