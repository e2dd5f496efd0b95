// One reverse step of any sampler that is linear in the state, the model's output and earlier outputs: DDPM (Ho, Jain
// and Abbeel 2020, alg. 2), DDIM (Song, Meng and Ermon 2021, eq. 12), and the multistep solvers that keep a history.
//
//     f      = f_uncond + guidance (f_cond - f_uncond)        classifier-free guidance (Ho and Salimans 2022, eq. 6)
//     x0_hat = clip(u x + v f, low, high)
//     x_next = a x + b x0_hat + d f + sum_k c[k] history[k] + s z
//
// Backward, for gradients dx_next and dx0_hat of the loss (history and f_uncond are constants), f' the guided output:
//     1. clip:   dx0 = (b dx_next + dx0_hat) [low <= u x + v f' <= high]    (at a bound the gradient passes)
//     2. state:  dx  = a dx_next + u dx0
//     3. model:  df' = d dx_next + v dx0,   df = guidance df' with guidance, df' without
//
// Array path: pydiff/ops/denoise.py. Reference: pydiff/reference/denoise.py. CPU: csrc/cpu/denoise.cpp.
//
// The coefficients are read on the device, from the row of the table that *row names: a recorded sequence of steps can
// be played again. A row that the table does not have makes every output NaN.
//
// Layout: one launch a step. What the model gives is T, everything else float32: a thread makes 8 elements in two
// accesses of 4, one after the other (together they would cost registers, and thereby threads in flight) and a block of
// threads apart, so that a warp's accesses lie side by side in both types. z is made in registers. Memory is the limit:
// 12 bytes an element, and those of f, f_uncond and the history. Without noise nothing depends on the sample, and the
// whole batch is one row. Every element is computed by the same fmaf, so its bits do not depend on its place.
#include <initializer_list>

#include "philox.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int block_threads = 256;
constexpr int width = 4, each = 8;              // elements of one access, and of a thread
constexpr int64_t tile = each * block_threads;  // elements of a block

// Where the thread's access number a of each / width begins in its row.
__device__ __forceinline__ int64_t place(int a) {
    return blockIdx.x * tile + width * (a * block_threads + int(threadIdx.x));
}

// The row of the table that holds this step. If there is none, NaN goes through u to x0_hat, and through a and d to the
// other outputs.
struct Coefficients {
    float u, v, low, high, a, b, d, s, guidance;
    const float* c;
};
__device__ __forceinline__ Coefficients coefficients(const DenoiseTable& t) {
    const int64_t row = t.row ? *t.row : 0;
    const bool inside = row >= 0 && row < t.rows;
    const float* r = t.table + (inside ? row * (9 + t.k) : 0);
    const float nan = __int_as_float(0x7FFFFFFF);
    return {inside ? r[0] : nan, r[1], r[2], r[3], inside ? r[4] : nan, r[5], inside ? r[6] : nan, r[7], r[8], r + 9};
}

// f', and u x + v f' before it is clipped.
template <bool guided>
__device__ __forceinline__ float guide(const Coefficients& step, float f, float f_uncond) {
    return guided ? fmaf(step.guidance, f - f_uncond, f_uncond) : f;
}
__device__ __forceinline__ float predict(const Coefficients& step, float x, float f) {
    return fmaf(step.u, x, step.v * f);
}

// ---- forward -----------------------------------------------------------------------------------------------------

// As the equation says, one element a thread.
template <class T>
__global__ void denoise_naive_kernel(int64_t n, int64_t size, DenoiseTable table, const float* x, const T* f,
                                     const T* f_uncond, bool noisy, NoiseKey key, float* x_next, float* x0_hat) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    const Coefficients step = coefficients(table);
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const int64_t at = i * size + e;
        float fs = to_float(f[at]);
        if (f_uncond) fs = to_float(f_uncond[at]) + step.guidance * (fs - to_float(f_uncond[at]));
        float x0 = step.u * x[at] + step.v * fs;
        if (x0 < step.low) x0 = step.low;
        if (x0 > step.high) x0 = step.high;
        float next = step.a * x[at] + step.b * x0 + step.d * fs;
        for (int64_t h = 0; h < table.k; ++h) next += step.c[h] * table.history[h][at];
        if (noisy) {
            float z[4];
            normals(key, i, uint32_t(e / 4), z);
            next += step.s * z[e % 4];
        }
        x0_hat[at] = x0;
        x_next[at] = next;
    }
}

template <class T, bool guided, bool noisy>
__global__ void __launch_bounds__(block_threads)
    denoise_kernel(int64_t n, int64_t size, bool aligned, DenoiseTable table, const float* __restrict__ x,
                   const T* __restrict__ f, const T* __restrict__ f_uncond, NoiseKey key, float* __restrict__ x_next,
                   float* __restrict__ x0_hat) {
    const Coefficients step = coefficients(table);
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
#pragma unroll 1
        for (int access = 0; access < each / width; ++access) {
            const int64_t e = place(access), at = i * size + e, left = size - e;
            if (e >= size) break;
            float next[width] = {};
            if (noisy) {  // first: it needs many registers, and few are taken yet
                normals(key, i, uint32_t(e / 4), next);
#pragma unroll
                for (int k = 0; k < width; ++k) next[k] *= step.s;
            }
            float xs[width], fs[width], us[width] = {}, x0[width];
            load_upto(xs, x + at, left, aligned);
            load_upto(fs, f + at, left, aligned);
            if (guided) load_upto(us, f_uncond + at, left, aligned);
#pragma unroll
            for (int k = 0; k < width; ++k) {
                fs[k] = guide<guided>(step, fs[k], us[k]);
                x0[k] = predict(step, xs[k], fs[k]);
                x0[k] = x0[k] < step.low ? step.low : x0[k] > step.high ? step.high : x0[k];  // NaN stays
                next[k] = fmaf(step.a, xs[k], fmaf(step.b, x0[k], fmaf(step.d, fs[k], next[k])));
            }
            store_upto(x0_hat + at, x0, left, aligned);
#pragma unroll 2
            for (int64_t h = 0; h < table.k; ++h) {
                float past[width];
                load_upto(past, table.history[h] + at, left, aligned);
#pragma unroll
                for (int k = 0; k < width; ++k) next[k] = fmaf(step.c[h], past[k], next[k]);
            }
            store_upto(x_next + at, next, left, aligned);
        }
    }
}

// ---- backward ----------------------------------------------------------------------------------------------------

// size: elements of the whole batch, here and below.
template <class T>
__global__ void denoise_backward_naive_kernel(int64_t size, DenoiseTable table, const float* dx_next,
                                              const float* dx0_hat, const float* x, const T* f, const T* f_uncond,
                                              float* dx, T* df) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    const Coefficients step = coefficients(table);
    float fs = to_float(f[e]), guidance = 1;
    if (f_uncond) fs = to_float(f_uncond[e]) + step.guidance * (fs - to_float(f_uncond[e])), guidance = step.guidance;
    const float x0 = step.u * x[e] + step.v * fs;
    const float dx0 = x0 >= step.low && x0 <= step.high ? step.b * dx_next[e] + dx0_hat[e] : 0.0f;  // 1
    dx[e] = step.a * dx_next[e] + step.u * dx0;                                                     // 2
    df[e] = from_float<T>(guidance * (step.d * dx_next[e] + step.v * dx0));                         // 3
}

template <class T, bool guided>
__global__ void __launch_bounds__(block_threads)
    denoise_backward_kernel(int64_t size, bool aligned, DenoiseTable table, const float* __restrict__ dx_next,
                            const float* __restrict__ dx0_hat, const float* __restrict__ x, const T* __restrict__ f,
                            const T* __restrict__ f_uncond, float* __restrict__ dx, T* __restrict__ df) {
    const Coefficients step = coefficients(table);
#pragma unroll 1
    for (int access = 0; access < each / width; ++access) {
        const int64_t e = place(access), left = size - e;
        if (e >= size) break;
        float xs[width], fs[width], us[width] = {}, dnext[width], dhat[width], dxs[width], dfs[width];
        load_upto(xs, x + e, left, aligned);
        load_upto(dnext, dx_next + e, left, aligned);
        load_upto(dhat, dx0_hat + e, left, aligned);
        load_upto(fs, f + e, left, aligned);
        if (guided) load_upto(us, f_uncond + e, left, aligned);
#pragma unroll
        for (int k = 0; k < width; ++k) {
            const float x0 = predict(step, xs[k], guide<guided>(step, fs[k], us[k]));
            const float dx0 = x0 >= step.low && x0 <= step.high ? fmaf(step.b, dnext[k], dhat[k]) : 0.0f;  // 1
            dxs[k] = fmaf(step.a, dnext[k], step.u * dx0);                                                 // 2
            dfs[k] = fmaf(step.d, dnext[k], step.v * dx0);                                                 // 3
            if (guided) dfs[k] *= step.guidance;
        }
        store_upto(dx + e, dxs, left, aligned);
        store_upto(df + e, dfs, left, aligned);
    }
}

// ---- launches ----------------------------------------------------------------------------------------------------

dim3 grid_of(int64_t n, int64_t size) { return rows_grid(n, (size + tile - 1) / tile, 1); }

template <class T, bool guided, bool noisy>
void launch_forward(int64_t n, int64_t size, const DenoiseTable& table, const float* x, const T* f, const T* f_uncond,
                    const NoiseKey& key, float* x_next, float* x0_hat, cudaStream_t stream) {
    if (!noisy) size *= n, n = 1;
    bool aligned = (n == 1 || size % width == 0) && aligned16({x, f, f_uncond, x_next, x0_hat});
    for (int64_t h = 0; h < table.k; ++h) aligned = aligned && aligned16({table.history[h]});
    launch<denoise_kernel<T, guided, noisy>>(grid_of(n, size), dim3(block_threads), 0, stream, n, size, aligned, table,
                                             x, f, f_uncond, key, x_next, x0_hat);
}

template <class T, bool guided>
void launch_backward(int64_t size, const DenoiseTable& table, const float* dx_next, const float* dx0_hat,
                     const float* x, const T* f, const T* f_uncond, float* dx, T* df, cudaStream_t stream) {
    const bool aligned = aligned16({dx_next, dx0_hat, x, f, f_uncond, dx, df});
    launch<denoise_backward_kernel<T, guided>>(grid_of(1, size), dim3(block_threads), 0, stream, size, aligned, table,
                                               dx_next, dx0_hat, x, f, f_uncond, dx, df);
}

}  // namespace

template <class T>
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const T* f, const T* f_uncond,
                     const NoiseKey* key, float* x_next, float* x0_hat, cudaStream_t stream) {
    if (n == 0 || size == 0) return;
    const NoiseKey drawn = key ? *key : NoiseKey{};
    if (use_naive)
        return launch<denoise_naive_kernel<T>>(rows_grid(n, size, block_threads), dim3(block_threads), 0, stream, n,
                                               size, step, x, f, f_uncond, key != nullptr, drawn, x_next, x0_hat);
    const auto run = f_uncond ? (key ? launch_forward<T, true, true> : launch_forward<T, true, false>)
                              : (key ? launch_forward<T, false, true> : launch_forward<T, false, false>);
    run(n, size, step, x, f, f_uncond, drawn, x_next, x0_hat, stream);
}

template <class T>
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const T* f, const T* f_uncond, float* dx, T* df, cudaStream_t stream) {
    const int64_t all = n * size;
    if (all == 0) return;
    if (use_naive)
        return launch<denoise_backward_naive_kernel<T>>(rows_grid(1, all, block_threads), dim3(block_threads), 0,
                                                        stream, all, step, dx_next, dx0_hat, x, f, f_uncond, dx, df);
    const auto run = f_uncond ? launch_backward<T, true> : launch_backward<T, false>;
    run(all, step, dx_next, dx0_hat, x, f, f_uncond, dx, df, stream);
}

#define PYDIFF_INSTANTIATE(T)                                                                                          \
    template void denoise_forward<T>(int64_t, int64_t, const DenoiseTable&, const float*, const T*, const T*,          \
                                     const NoiseKey*, float*, float*, cudaStream_t);                                   \
    template void denoise_backward<T>(int64_t, int64_t, const DenoiseTable&, const float*, const float*, const float*, \
                                      const T*, const T*, float*, T*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
