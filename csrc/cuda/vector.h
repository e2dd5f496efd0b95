// Several elements at a time between memory and float registers, whatever the type in memory: 16-byte accesses where the
// address allows, single elements elsewhere and at the end of a row. Launch sizes for elementwise kernels.
#pragma once
#include "kernels.h"

namespace pydiff {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
    if constexpr (sizeof(T) == 2)
        return __float2bfloat16(x);
    else
        return x;
}

// `bytes` (4, 8 or 16) of T, moved as one.
template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
    T element[count];
};

// x[0 .. count) = p[0 .. count). p is aligned to the pack that holds count elements, at most 16 bytes.
template <int count, class T>
__device__ __forceinline__ void load(float (&x)[count], const T* p) {
    constexpr int most = 16 / int(sizeof(T)), width = count < most ? count : most;
#pragma unroll
    for (int i = 0; i < count; i += width) {
        const auto pack = load_vector<Pack<T, width>>(p + i);
#pragma unroll
        for (int j = 0; j < width; ++j) x[i + j] = to_float(pack.element[j]);
    }
}
template <int count, class T>
__device__ __forceinline__ void store(T* p, const float (&x)[count]) {
#if defined(__CUDACC__)
    // Hides where p comes from. Otherwise nvcc shares its address with the single stores of store_upto, no longer knows
    // that it is a multiple of 16, and stores this one in pieces as well (csrc/cuda/gate.py sees that).
    asm("" : "+l"(p));
    __builtin_assume(__isGlobal(p));
#endif
    constexpr int most = 16 / int(sizeof(T)), width = count < most ? count : most;
#pragma unroll
    for (int i = 0; i < count; i += width) {
        Pack<T, width> pack;
#pragma unroll
        for (int j = 0; j < width; ++j) pack.element[j] = from_float<T>(x[i + j]);
        store_vector(p + i, pack);
    }
}

// The same at the end of a row or at an unaligned address: the first `left` elements one by one, zeros behind them.
template <int count, class T>
__device__ __forceinline__ void load_upto(float (&x)[count], const T* p, int64_t left, bool aligned) {
    if (aligned && left >= count) return load(x, p);
#pragma unroll
    for (int i = 0; i < count; ++i) x[i] = i < left ? to_float(p[i]) : 0.0f;
}
template <int count, class T>
__device__ __forceinline__ void store_upto(T* p, const float (&x)[count], int64_t left, bool aligned) {
    if (aligned && left >= count) return store(p, x);
#pragma unroll
    for (int i = 0; i < count; ++i)
        if (i < left) p[i] = from_float<T>(x[i]);
}

// Whether every address is a multiple of 16 bytes: rows of `size` elements then start aligned if size is a multiple of 8.
inline bool aligned16(std::initializer_list<const void*> addresses) {
    for (const void* p : addresses)
        if (reinterpret_cast<uintptr_t>(p) % 16) return false;
    return true;
}

// Blocks of `threads` for n samples of `items` work items each: (items, samples). A grid has at most 65,535 rows, so
// kernels step over samples by gridDim.y.
inline dim3 rows_grid(int64_t n, int64_t items, int threads) {
    return dim3(unsigned((items + threads - 1) / threads), unsigned(n < 65535 ? n : 65535));
}

}  // namespace pydiff
