// The CUDA that our kernels are written in, for nvcc and for an ordinary C++17 compiler: include it first.
//
//     SHARED(float, tile, [32][33]);          __shared__ float tile[32][33];
//     SHARED_ALIGNED(16, float, tile, [64]);  the same, for accesses of 16 bytes or ldmatrix
//     DYNAMIC_SHARED(float, rows);            float* rows: the shared bytes named in the launch, aligned to 16
//     load_vector<float4>(p)                  one access of 16 bytes; p must be aligned to it
//     launch<kernel>(grid, block, shared_bytes, stream, arguments...)      kernel<<<...>>>(arguments...)
//     multiprocessors()                       of the current device
//     most_shared_bytes()                     that a block may have on the current device
//
// Everything else has the name it has in CUDA. The emulator behind the second half is explained in docs/simt.md.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__) || defined(PYDIFF_GPU)  // nvcc, or the C++ files beside it

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define SHARED_ALIGNED(alignment, type, name, ...) __shared__ __align__(alignment) type name __VA_ARGS__
#define DYNAMIC_SHARED(type, name)                                             \
    extern __shared__ __align__(16) unsigned char pydiff_dynamic_shared[];     \
    type* name = reinterpret_cast<type*>(pydiff_dynamic_shared)

namespace pydiff {

template <class V, class T>
__device__ __forceinline__ V load_vector(const T* p) {
    return *reinterpret_cast<const V*>(p);
}

template <class V, class T>
__device__ __forceinline__ void store_vector(T* p, V v) {
    *reinterpret_cast<V*>(p) = v;
}

#if defined(__CUDACC__)
// Errors of the launch are left for cudaGetLastError, as with <<<>>>.
template <auto kernel, class... Args>
void launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Args... args) {
    if (shared_bytes > 48 << 10)  // more must be asked for
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
}
#endif

// Of the current device: how many blocks times that run at a time is for the kernel to know.
inline int multiprocessors() {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
}

inline int64_t most_shared_bytes() {
    int device = 0, bytes = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return bytes;
}

}  // namespace pydiff

#else

#include <cmath>

#include "collectives.h"
#include "launch.h"
#include "memory.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (pydiff::simt::running().index)
#define blockIdx (pydiff::simt::running().block->index)
#define blockDim (pydiff::simt::running().block->dim)
#define gridDim (pydiff::simt::running().block->grid)

#define SHARED(type, name, ...) SHARED_ALIGNED(alignof(type), type, name, __VA_ARGS__)
#define SHARED_ALIGNED(alignment, type, name, ...) \
    typedef type name##_type __VA_ARGS__;          \
    const auto name = pydiff::simt::make_shared_array<name##_type>(alignment, #name)
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(pydiff::simt::dynamic_shared_memory())

inline float __fmul_rn(float x, float y) { return x * y; }  // never fused with a sum
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN becomes 0, as on the GPU
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

namespace pydiff {

inline int multiprocessors() { return 2; }  // few, so that blocks with several pieces of work are tested
inline int64_t most_shared_bytes() { return simt::max_shared_bytes; }

template <class V, class T>
V load_vector(const T* p, simt::Site site = simt::Site::here()) {
    simt::check_aligned(p, sizeof(V), "a vector load", site);
    return *reinterpret_cast<const V*>(p);
}

template <class V, class T>
void store_vector(T* p, V v, simt::Site site = simt::Site::here()) {
    simt::check_aligned(p, sizeof(V), "a vector store", site);
    *reinterpret_cast<V*>(p) = v;
}

}  // namespace pydiff

#endif
