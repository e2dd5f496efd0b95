// GELU (Hendrycks and Gimpel 2016, section 2) and the gate made of it (Shazeer 2020, "GLU Variants", eq. 6).
//
//     y = x Phi(x)                    Phi: the normal distribution's cumulative, phi: its density
//     y = a b Phi(b)                  where a row is a and then b
//
// Backward, for a gradient dy of the loss:
//     1. dx = dy (Phi(x) + x phi(x))
//     2. da = dy b Phi(b),   db = dy a (Phi(b) + b phi(b))
//
// Array path: pydiff/ops/gelu.py. Reference: pydiff/reference/gelu.py. CPU: csrc/cpu/gelu.cpp.
//
// Layout: one launch. A thread makes the elements of one 16-byte access of a row; memory is the limit. Without a gate
// the whole array is one row. Every element is computed alike, so its bits do not depend on its place.
#include "vector.h"

namespace pydiff {
namespace {

constexpr int most_threads = 256;
template <class T>
constexpr int width = 16 / int(sizeof(T));  // elements of an access

// Phi(x), and Phi(x) + x phi(x). Far below zero phi is 0, and so is its product with x, infinity too.
__device__ __forceinline__ float cumulative(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ __forceinline__ float gelu(float x) { return x < -14.0f ? 0.0f : x * cumulative(x); }
__device__ __forceinline__ float slope(float x) {
    const float inner = x < -14.0f ? -14.0f : x > 14.0f ? 14.0f : x;  // NaN stays
    return cumulative(inner) + inner * (0.39894228f * expf(-0.5f * inner * inner));
}

// ---- the equations, one element a thread -------------------------------------------------------------------------

template <class T, bool gated>
__global__ void gelu_naive_kernel(int64_t rows, int64_t c, const T* x, T* y) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= c) return;
    for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
        const float b = to_float(x[gated ? (2 * i + 1) * c + e : i * c + e]);
        y[i * c + e] = from_float<T>(gated ? to_float(x[2 * i * c + e]) * gelu(b) : gelu(b));
    }
}

template <class T, bool gated>
__global__ void gelu_backward_naive_kernel(int64_t rows, int64_t c, const T* dy, const T* x, T* dx) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= c) return;
    for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
        const int64_t a = 2 * i * c + e, b = gated ? a + c : i * c + e;
        const float g = to_float(dy[i * c + e]), gate = to_float(x[b]);
        if (gated) dx[a] = from_float<T>(g * gelu(gate));                                  // 2
        dx[b] = from_float<T>(gated ? g * to_float(x[a]) * slope(gate) : g * slope(gate));  // 1, 2
    }
}

// ---- 16 bytes at a time ------------------------------------------------------------------------------------------

template <class T, bool gated>
__global__ void __launch_bounds__(most_threads)
    gelu_kernel(int64_t rows, int64_t c, bool aligned, const T* __restrict__ x, T* __restrict__ y) {
    constexpr int n = width<T>;
    const int64_t e = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * n;
    if (e >= c) return;
    for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
        float b[n], a[n] = {};
        if (gated) load_upto(a, x + 2 * i * c + e, c - e, aligned);
        load_upto(b, x + (gated ? (2 * i + 1) * c : i * c) + e, c - e, aligned);
#pragma unroll
        for (int k = 0; k < n; ++k) b[k] = gated ? a[k] * gelu(b[k]) : gelu(b[k]);
        store_upto(y + i * c + e, b, c - e, aligned);
    }
}

template <class T, bool gated>
__global__ void __launch_bounds__(most_threads)
    gelu_backward_kernel(int64_t rows, int64_t c, bool aligned, const T* __restrict__ dy, const T* __restrict__ x,
                         T* __restrict__ dx) {
    constexpr int n = width<T>;
    const int64_t e = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * n;
    if (e >= c) return;
    for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
        const int64_t at_a = 2 * i * c + e, at_b = gated ? at_a + c : i * c + e;
        float g[n], a[n] = {}, b[n];
        load_upto(g, dy + i * c + e, c - e, aligned);
        load_upto(b, x + at_b, c - e, aligned);
        if (gated) load_upto(a, x + at_a, c - e, aligned);
#pragma unroll
        for (int k = 0; k < n; ++k) {
            const float db = gated ? g[k] * a[k] * slope(b[k]) : g[k] * slope(b[k]);  // 1, 2
            a[k] = g[k] * gelu(b[k]);                                                 // da
            b[k] = db;
        }
        if (gated) store_upto(dx + at_a, a, c - e, aligned);
        store_upto(dx + at_b, b, c - e, aligned);
    }
}

// ---- launches ----------------------------------------------------------------------------------------------------

template <class T, bool gated>
void forward(int64_t rows, int64_t c, const T* x, T* y, cudaStream_t stream) {
    if (rows == 0 || c == 0) return;
    if (use_naive)
        return launch<gelu_naive_kernel<T, gated>>(rows_grid(rows, c, most_threads), dim3(most_threads), 0, stream,
                                                   rows, c, x, y);
    const bool aligned = (!gated || c % width<T> == 0) && aligned16({x, y});
    const int64_t packs = (c + width<T> - 1) / width<T>;
    const int threads = packs < most_threads ? int((packs + 31) / 32 * 32) : most_threads;  // whole warps
    launch<gelu_kernel<T, gated>>(rows_grid(rows, packs, threads), dim3(threads), 0, stream, rows, c, aligned, x, y);
}

template <class T, bool gated>
void backward(int64_t rows, int64_t c, const T* dy, const T* x, T* dx, cudaStream_t stream) {
    if (rows == 0 || c == 0) return;
    if (use_naive)
        return launch<gelu_backward_naive_kernel<T, gated>>(rows_grid(rows, c, most_threads), dim3(most_threads), 0,
                                                            stream, rows, c, dy, x, dx);
    const bool aligned = (!gated || c % width<T> == 0) && aligned16({dy, x, dx});
    const int64_t packs = (c + width<T> - 1) / width<T>;
    const int threads = packs < most_threads ? int((packs + 31) / 32 * 32) : most_threads;
    launch<gelu_backward_kernel<T, gated>>(rows_grid(rows, packs, threads), dim3(threads), 0, stream, rows, c, aligned,
                                           dy, x, dx);
}

}  // namespace

template <class T>
void gelu_forward(int64_t size, const T* x, T* y, cudaStream_t stream) {
    forward<T, false>(1, size, x, y, stream);
}
template <class T>
void gelu_backward(int64_t size, const T* dy, const T* x, T* dx, cudaStream_t stream) {
    backward<T, false>(1, size, dy, x, dx, stream);
}
template <class T>
void geglu_forward(int64_t rows, int64_t c, const T* x, T* y, cudaStream_t stream) {
    forward<T, true>(rows, c, x, y, stream);
}
template <class T>
void geglu_backward(int64_t rows, int64_t c, const T* dy, const T* x, T* dx, cudaStream_t stream) {
    backward<T, true>(rows, c, dy, x, dx, stream);
}

#define PYDIFF_INSTANTIATE(T)                                                                      \
    template void gelu_forward<T>(int64_t, const T*, T*, cudaStream_t);                            \
    template void gelu_backward<T>(int64_t, const T*, const T*, T*, cudaStream_t);                 \
    template void geglu_forward<T>(int64_t, int64_t, const T*, T*, cudaStream_t);                  \
    template void geglu_backward<T>(int64_t, int64_t, const T*, const T*, T*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
