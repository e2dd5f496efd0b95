// Forward diffusion with noise made on the spot (Ho, Jain and Abbeel 2020, eq. 4), and the squared error against it:
//
//     x_t  = alpha x0 + sigma eps                             alpha, sigma per sample; eps from philox.h
//     loss = weight / size sum_e (f - target)^2,   target = p x0 + q eps        p, q, weight per sample
//
// eps is a function of (seed, purpose, sample, step, element), so it is never stored: noise_loss draws it again. A term
// of the target whose coefficient is 0 is omitted: x0 is not read then, or eps not drawn.
// Backward, eps being a constant:
//     1. dx0 = alpha dx_t
//     2. df  = dloss weight 2 / size (f - target)
//
// Array path: pydiff/ops/noise.py. Reference: pydiff/reference/noise.py. CPU: csrc/cpu/noise.cpp.
//
// Layout: (n, size), sample by sample. A row of the grid is a sample, a block a tile of it, a thread 8 elements in
// accesses of 16 bytes: one in bfloat16; two in float32, one after the other (together they would cost registers, and
// thereby threads in flight) and a block of threads apart, so that a warp's accesses lie side by side.
//
// The sum of a loss: 8 squares per thread, a tree over the block, one number per tile in the workspace; a second kernel
// adds the tiles of a sample, in double and in one order. Tiles are cut by `size` alone, so a sample's bits do not
// depend on the batch. Products and sums that nvcc might fuse in one place and not in another are written as fmaf.
#include <initializer_list>

#include "philox.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int block_threads = 256;
constexpr int each = 8;                         // elements of a thread
constexpr int64_t tile = each * block_threads;  // elements of a block

template <class T>
constexpr int width = 16 / int(sizeof(T));  // elements of one access

// Where the thread's access number a of each / width begins in the sample.
template <class T>
__device__ __forceinline__ int64_t place(int a) {
    return blockIdx.x * tile + width<T> * (a * block_threads + int(threadIdx.x));
}

// z[k] = eps of element e + k of sample i; e is a multiple of 4.
template <int count>
__device__ __forceinline__ void draw(const NoiseKey& key, int64_t i, int64_t e, float (&z)[count]) {
#pragma unroll
    for (int b = 0; b < count / 4; ++b) {
        float four[4];
        normals(key, i, uint32_t(e / 4) + b, four);
#pragma unroll
        for (int k = 0; k < 4; ++k) z[4 * b + k] = four[k];
    }
}

// The same for one element, for the naive kernels.
__device__ __forceinline__ float draw(const NoiseKey& key, int64_t i, int64_t e) {
    float z[4];
    normals(key, i, uint32_t(e / 4), z);
    return z[e % 4];
}

// ---- x_t ---------------------------------------------------------------------------------------------------------

// As the equation says, one element a thread: what the fast kernel is compared with.
template <class T>
__global__ void noise_naive_kernel(int64_t n, int64_t size, const T* x0, const float* alpha, const float* sigma,
                                   NoiseKey key, T* x_t, T* eps) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float z = draw(key, i, e);
        if (x_t) x_t[i * size + e] = from_float<T>(alpha[i] * to_float(x0[i * size + e]) + sigma[i] * z);
        if (eps) eps[i * size + e] = from_float<T>(z);
    }
}

// x_t or eps may be null: it is then not written, and without x_t nothing is read.
template <class T>
__global__ void __launch_bounds__(block_threads)
    noise_forward_kernel(int64_t n, int64_t size, bool aligned, const T* __restrict__ x0,
                         const float* __restrict__ alpha, const float* __restrict__ sigma, NoiseKey key,
                         T* __restrict__ x_t, T* __restrict__ eps) {
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float a = x_t ? alpha[i] : 0.0f, s = x_t ? sigma[i] : 0.0f;
#pragma unroll 1
        for (int access = 0; access < each / width<T>; ++access) {
            const int64_t e = place<T>(access), at = i * size + e;
            if (e >= size) break;
            float x[width<T>], z[width<T>];
            if (x_t) load_upto(x, x0 + at, size - e, aligned);
            draw(key, i, e, z);
            if (eps) store_upto(eps + at, z, size - e, aligned);
            if (!x_t) continue;
#pragma unroll
            for (int k = 0; k < width<T>; ++k) x[k] = fmaf(a, x[k], s * z[k]);
            store_upto(x_t + at, x, size - e, aligned);
        }
    }
}

template <class T>
__global__ void noise_backward_naive_kernel(int64_t n, int64_t size, const T* dx_t, const float* alpha, T* dx0) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        dx0[i * size + e] = from_float<T>(alpha[i] * to_float(dx_t[i * size + e]));  // 1
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    noise_backward_kernel(int64_t n, int64_t size, bool aligned, const T* __restrict__ dx_t,
                          const float* __restrict__ alpha, T* __restrict__ dx0) {
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float a = alpha[i];
#pragma unroll 1
        for (int access = 0; access < each / width<T>; ++access) {
            const int64_t e = place<T>(access);
            if (e >= size) break;
            float g[width<T>];
            load_upto(g, dx_t + i * size + e, size - e, aligned);
#pragma unroll
            for (int k = 0; k < width<T>; ++k) g[k] *= a;  // 1
            store_upto(dx0 + i * size + e, g, size - e, aligned);
        }
    }
}

// ---- loss --------------------------------------------------------------------------------------------------------

// f - target of element e of sample i, as the equation says.
template <class T>
__device__ float difference(int64_t i, int64_t e, int64_t size, const T* f, const T* x0, const float* p, const float* q,
                            const NoiseKey& key) {
    const float clean = p[i] == 0 ? 0.0f : p[i] * to_float(x0[i * size + e]);
    return to_float(f[i * size + e]) - (clean + q[i] * draw(key, i, e));
}

// One thread a sample.
template <class T>
__global__ void noise_loss_naive_kernel(int64_t n, int64_t size, const T* f, const T* x0, const float* p,
                                        const float* q, const float* weight, NoiseKey key, float* loss) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double sum = 0;
    for (int64_t e = 0; e < size; ++e) {
        const double d = difference(i, e, size, f, x0, p, q, key);
        sum += d * d;
    }
    loss[i] = float(weight[i] * sum / double(size));
}

// One thread an element.
template <class T>
__global__ void noise_loss_backward_naive_kernel(int64_t n, int64_t size, const float* dloss, const T* f, const T* x0,
                                                 const float* p, const float* q, const float* weight, NoiseKey key,
                                                 T* df) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float d = difference(i, e, size, f, x0, p, q, key);
        df[i * size + e] = from_float<T>(dloss[i] * weight[i] * 2.0f / float(size) * d);  // 2
    }
}

// d[k] = f - target of element e + k of sample i. f and x0 point to element e; `left` elements are there, and behind
// them d is any number.
template <class T>
__device__ __forceinline__ void differences(float (&d)[width<T>], int64_t i, int64_t e, int64_t left, bool aligned,
                                            const T* f, const T* x0, float p, float q, const NoiseKey& key) {
    float x[width<T>] = {}, z[width<T>] = {};
    load_upto(d, f, left, aligned);
    if (p != 0) load_upto(x, x0, left, aligned);
    if (q != 0) draw(key, i, e, z);
#pragma unroll
    for (int k = 0; k < width<T>; ++k) d[k] -= fmaf(p, x[k], q * z[k]);
}

// The sum over the block of every thread's x, added in one order; for thread 0.
__device__ __forceinline__ float block_sum(float x) {
    SHARED(float, of_warp, [block_threads / 32]);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_down_sync(~0u, x, distance);
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    if (warp == 0) {
        x = lane < block_threads / 32 ? of_warp[lane] : 0.0f;
#pragma unroll
        for (int distance = block_threads / 64; distance > 0; distance /= 2) x += __shfl_down_sync(~0u, x, distance);
    }
    __syncthreads();  // the next sum may overwrite of_warp
    return x;
}

// sums[i, block] = the squares of one tile.
template <class T>
__global__ void __launch_bounds__(block_threads)
    noise_loss_tiles_kernel(int64_t n, int64_t size, bool aligned, const T* __restrict__ f, const T* __restrict__ x0,
                            const float* __restrict__ p, const float* __restrict__ q, NoiseKey key,
                            float* __restrict__ sums /* (n, tiles) */) {
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        float sum = 0;
#pragma unroll 1
        for (int access = 0; access < each / width<T>; ++access) {
            const int64_t e = place<T>(access), at = i * size + e;
            if (e >= size) break;
            float d[width<T>];
            differences(d, i, e, size - e, aligned, f + at, x0 + at, p[i], q[i], key);
            const int left = size - e < width<T> ? int(size - e) : width<T>;
#pragma unroll
            for (int k = 0; k < width<T>; ++k)
                if (k < left) sum = fmaf(d[k], d[k], sum);
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) sums[i * gridDim.x + blockIdx.x] = sum;
    }
}

// One warp a sample: lane k adds tiles k, k + 32, .., then a tree over the lanes.
__global__ void __launch_bounds__(block_threads)
    noise_loss_kernel(int64_t n, int64_t size, int64_t tiles, const float* __restrict__ sums,
                      const float* __restrict__ weight, float* __restrict__ loss) {
    const int64_t i = blockIdx.x * int64_t(block_threads / 32) + threadIdx.x / 32;
    if (i >= n) return;
    double sum = 0;
    for (int64_t k = threadIdx.x % 32; k < tiles; k += 32) sum += sums[i * tiles + k];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(~0u, sum, distance);
    if (threadIdx.x % 32 == 0) loss[i] = float(weight[i] * sum / double(size));
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    noise_loss_backward_kernel(int64_t n, int64_t size, bool aligned, const float* __restrict__ dloss,
                               const T* __restrict__ f, const T* __restrict__ x0, const float* __restrict__ p,
                               const float* __restrict__ q, const float* __restrict__ weight, NoiseKey key,
                               T* __restrict__ df) {
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float factor = dloss[i] * weight[i] * 2.0f / float(size);
#pragma unroll 1
        for (int access = 0; access < each / width<T>; ++access) {
            const int64_t e = place<T>(access), at = i * size + e;
            if (e >= size) break;
            float d[width<T>];
            differences(d, i, e, size - e, aligned, f + at, x0 + at, p[i], q[i], key);
#pragma unroll
            for (int k = 0; k < width<T>; ++k) d[k] *= factor;  // 2
            store_upto(df + at, d, size - e, aligned);
        }
    }
}

// ---- launches ----------------------------------------------------------------------------------------------------

int64_t tiles_of(int64_t size) { return (size + tile - 1) / tile; }

dim3 grid_of(int64_t n, int64_t size) { return rows_grid(n, tiles_of(size), 1); }

// Whether every row of these arrays starts at a multiple of 16 bytes.
template <class T>
bool rows_aligned(int64_t size, std::initializer_list<const void*> arrays) {
    return size % width<T> == 0 && aligned16(arrays);
}

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
    launch<noise_forward_kernel<T>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size,
                                    rows_aligned<T>(size, {x0, x_t, eps}), x0, alpha, sigma, key, x_t, eps);
}

template <class T>
void noise_backward(int64_t n, int64_t size, const T* dx_t, const float* alpha, T* dx0, cudaStream_t stream) {
    if (n == 0 || size == 0) return;
    if (use_naive)
        return launch<noise_backward_naive_kernel<T>>(rows_grid(n, size, block_threads), dim3(block_threads), 0, stream,
                                                      n, size, dx_t, alpha, dx0);
    launch<noise_backward_kernel<T>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size,
                                     rows_aligned<T>(size, {dx_t, dx0}), dx_t, alpha, dx0);
}

size_t noise_loss_workspace(int64_t n, int64_t size) { return size_t(n * tiles_of(size)) * sizeof(float); }

template <class T>
void noise_loss_forward(int64_t n, int64_t size, const T* f, const T* x0, const float* p, const float* q,
                        const float* weight, const NoiseKey& key, float* loss, void* workspace, cudaStream_t stream) {
    if (n == 0) return;
    if (use_naive)
        return launch<noise_loss_naive_kernel<T>>(rows_grid(1, n, block_threads), dim3(block_threads), 0, stream, n,
                                                  size, f, x0, p, q, weight, key, loss);
    float* sums = static_cast<float*>(workspace);
    if (size > 0)
        launch<noise_loss_tiles_kernel<T>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size,
                                           rows_aligned<T>(size, {f, x0}), f, x0, p, q, key, sums);
    launch<noise_loss_kernel>(rows_grid(1, n, block_threads / 32), dim3(block_threads), 0, stream, n, size,
                              tiles_of(size), sums, weight, loss);
}

template <class T>
void noise_loss_backward(int64_t n, int64_t size, const float* dloss, const T* f, const T* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, T* df, cudaStream_t stream) {
    if (n == 0 || size == 0) return;
    if (use_naive)
        return launch<noise_loss_backward_naive_kernel<T>>(rows_grid(n, size, block_threads), dim3(block_threads), 0,
                                                           stream, n, size, dloss, f, x0, p, q, weight, key, df);
    launch<noise_loss_backward_kernel<T>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size,
                                          rows_aligned<T>(size, {f, x0, df}), dloss, f, x0, p, q, weight, key, df);
}

#define PYDIFF_INSTANTIATE(T)                                                                                          \
    template void normal<T>(int64_t, int64_t, const NoiseKey&, T*, cudaStream_t);                                      \
    template void noise_forward<T>(int64_t, int64_t, const T*, const float*, const float*, const NoiseKey&, T*, T*,    \
                                   cudaStream_t);                                                                      \
    template void noise_backward<T>(int64_t, int64_t, const T*, const float*, T*, cudaStream_t);                       \
    template void noise_loss_forward<T>(int64_t, int64_t, const T*, const T*, const float*, const float*,              \
                                        const float*, const NoiseKey&, float*, void*, cudaStream_t);                   \
    template void noise_loss_backward<T>(int64_t, int64_t, const float*, const T*, const T*, const float*,             \
                                         const float*, const float*, const NoiseKey&, T*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
