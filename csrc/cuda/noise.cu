// Forward diffusion with its noise made on the spot (Ho, Jain and Abbeel 2020, eq. 4), and the squared error against it:
//
//     x_t  = alpha x0 + sigma eps                             alpha, sigma per sample; eps from philox.h
//     loss = weight / size sum_e (f - target)^2,   target = p x0 + q eps        p, q, weight per sample
//
// eps is a function of (seed, purpose, sample, step, element), so nobody stores it: noise_loss draws it again.
// Backward, eps being a constant:
//     1. dx0 = alpha dx_t
//     2. df  = dloss weight 2 / size (f - target)
//
// Array path: pydiff/ops/noise.py. Reference: pydiff/reference/noise.py. CPU: csrc/cpu/noise.cpp.
//
// Layout: (n, size), sample by sample. A thread makes 8 consecutive elements, two blocks of the generator; a row of the
// grid is a sample. All of it is bound by memory: 8 elements are one 16-byte access in bfloat16, two in float32.
#include <initializer_list>
#include <stdexcept>

#include "philox.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int block_threads = 256;
constexpr int each = 8;  // elements of a thread

// z[k] = eps of elements first .. first + 7 of sample i; first is a multiple of 8.
__device__ __forceinline__ void eight_normals(const NoiseKey& key, int64_t i, int64_t first, float (&z)[each]) {
    float half[4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        normals(key, i, uint32_t(first / 4) + h, half);
#pragma unroll
        for (int k = 0; k < 4; ++k) z[4 * h + k] = half[k];
    }
}

// ---- x_t ---------------------------------------------------------------------------------------------------------

// As the equation says, one element a thread: what the fast kernel is compared with.
template <class T>
__global__ void noise_naive_kernel(int64_t n, int64_t size, const T* x0, const float* alpha, const float* sigma,
                                   NoiseKey key, T* x_t, T* eps) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        float z[4];
        normals(key, i, uint32_t(e / 4), z);
        if (x_t) x_t[i * size + e] = from_float<T>(alpha[i] * to_float(x0[i * size + e]) + sigma[i] * z[e % 4]);
        if (eps) eps[i * size + e] = from_float<T>(z[e % 4]);
    }
}

// x_t or eps may be null: it is then not written.
template <class T>
__global__ void __launch_bounds__(block_threads)
    noise_forward_kernel(int64_t n, int64_t size, bool aligned, const T* __restrict__ x0,
                         const float* __restrict__ alpha, const float* __restrict__ sigma, NoiseKey key,
                         T* __restrict__ x_t, T* __restrict__ eps) {
    const int64_t e = each * (int64_t(blockIdx.x) * block_threads + threadIdx.x);
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const int64_t at = i * size + e;
        float z[each];
        eight_normals(key, i, e, z);
        if (eps) store_upto(eps + at, z, size - e, aligned);
        if (!x_t) continue;
        const float a = alpha[i], s = sigma[i];
        float x[each];
        load_upto(x, x0 + at, size - e, aligned);
#pragma unroll
        for (int k = 0; k < each; ++k) x[k] = a * x[k] + s * z[k];
        store_upto(x_t + at, x, size - e, aligned);
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    noise_backward_kernel(int64_t n, int64_t size, bool aligned, const T* __restrict__ dx_t,
                          const float* __restrict__ alpha, T* __restrict__ dx0) {
    const int64_t e = each * (int64_t(blockIdx.x) * block_threads + threadIdx.x);
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float a = alpha[i];
        float g[each];
        load_upto(g, dx_t + i * size + e, size - e, aligned);
#pragma unroll
        for (int k = 0; k < each; ++k) g[k] *= a;  // 1
        store_upto(dx0 + i * size + e, g, size - e, aligned);
    }
}

dim3 grid_of(int64_t n, int64_t size) { return rows_grid(n, (size + each - 1) / each, block_threads); }

}  // namespace

template <class T>
void normal(int64_t n, int64_t size, const NoiseKey& key, T* eps, cudaStream_t stream) {
    noise_forward<T>(n, size, nullptr, nullptr, nullptr, key, nullptr, eps, stream);
}

template <class T>
void noise_forward(int64_t n, int64_t size, const T* x0, const float* alpha, const float* sigma, const NoiseKey& key,
                   T* x_t, T* eps, cudaStream_t stream) {
    if (n == 0 || size == 0) return;
    if (use_naive)
        return launch<noise_naive_kernel<T>>(rows_grid(n, size, block_threads), dim3(block_threads), 0, stream, n, size,
                                             x0, alpha, sigma, key, x_t, eps);
    const bool aligned = size % each == 0 && aligned16({x0, x_t, eps});
    launch<noise_forward_kernel<T>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size, aligned, x0, alpha,
                                    sigma, key, x_t, eps);
}

template <class T>
void noise_backward(int64_t n, int64_t size, const T* dx_t, const float* alpha, T* dx0, cudaStream_t stream) {
    if (n == 0 || size == 0) return;
    const bool aligned = size % each == 0 && aligned16({dx_t, dx0});
    launch<noise_backward_kernel<T>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size, aligned, dx_t, alpha,
                                     dx0);
}

#define PYDIFF_INSTANTIATE(T)                                                                                        \
    template void normal<T>(int64_t, int64_t, const NoiseKey&, T*, cudaStream_t);                                    \
    template void noise_forward<T>(int64_t, int64_t, const T*, const float*, const float*, const NoiseKey&, T*, T*,  \
                                   cudaStream_t);                                                                    \
    template void noise_backward<T>(int64_t, int64_t, const T*, const float*, T*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

size_t noise_loss_workspace(int64_t, int64_t) { return 0; }
template <class T>
void noise_loss_forward(int64_t n, int64_t size, const T* f , const T* x0 ,
                        const float* p , const float* q , const float* weight ,
                        const NoiseKey& key, float* loss , void* workspace, cudaStream_t stream) {
    throw std::runtime_error("noise_loss_forward is not written yet");
}
template void noise_loss_forward<float>(int64_t n, int64_t size, const float* f , const float* x0 ,
                        const float* p , const float* q , const float* weight ,
                        const NoiseKey& key, float* loss , void* workspace, cudaStream_t stream);
template void noise_loss_forward<bfloat16>(int64_t n, int64_t size, const bfloat16* f , const bfloat16* x0 ,
                        const float* p , const float* q , const float* weight ,
                        const NoiseKey& key, float* loss , void* workspace, cudaStream_t stream);
template <class T>
void noise_loss_backward(int64_t n, int64_t size, const float* dloss , const T* f, const T* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, T* df, cudaStream_t stream) {
    throw std::runtime_error("noise_loss_backward is not written yet");
}
template void noise_loss_backward<float>(int64_t n, int64_t size, const float* dloss , const float* f, const float* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, float* df, cudaStream_t stream);
template void noise_loss_backward<bfloat16>(int64_t n, int64_t size, const float* dloss , const bfloat16* f, const bfloat16* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, bfloat16* df, cudaStream_t stream);

}  // namespace pydiff
