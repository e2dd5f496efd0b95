// Layer normalisation (Ba, Kiros and Hinton 2016, eq. 4): each row of c channels separately.
//
//     xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)   mean, var over the c channels of a row
//     y    = gamma xhat + beta
//
// Backward, for a gradient dy of the loss:
//     1. dbeta = sum_rows dy,   dgamma = sum_rows dy xhat
//     2. dxhat = gamma dy
//     3. dx    = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat))
//
// Array path: pydiff/ops/layer_norm.py. Reference: pydiff/reference/layer_norm.py. CPU: csrc/cpu/layer_norm.cpp.
//
// Layout: a warp makes a row, 16 bytes a lane at a time. A row of a network is some KB: it is read from memory once and
// from the cache in the passes after the first. dgamma and dbeta are columns: a block adds up some of them over a chunk
// of rows, whose number depends on the rows only, and a second launch adds the chunks in double.
#include <algorithm>

#include "../simt/ptx.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int warps = 4;                         // of a block, each with a row
constexpr int column_threads = 32, row_threads = 8;  // of a block that adds up columns
constexpr int64_t chunk_rows = 256;              // at least
constexpr int64_t most_chunks = 256;
template <class T>
constexpr int width = 16 / int(sizeof(T));

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// value[0 .. n) of a row of float parameters, or `missing` where there are none.
template <int n>
__device__ __forceinline__ void load_parameters(float (&value)[n], const float* p, int64_t e, int64_t c, float missing,
                                                bool aligned) {
#pragma unroll
    for (int k = 0; k < n; ++k) value[k] = missing;
    if (p) load_upto(value, p + e, c - e, aligned);
}

// ---- the equations as they stand ---------------------------------------------------------------------------------

// A thread makes a row.
template <class T>
__global__ void layer_norm_naive_kernel(int64_t rows, int64_t c, float eps, const T* x, const float* gamma,
                                        const float* beta, T* y, float* mean, float* rstd) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows) return;
    double sum = 0, squares = 0;
    for (int64_t e = 0; e < c; ++e) sum += to_float(x[i * c + e]);
    const double m = sum / double(c);
    for (int64_t e = 0; e < c; ++e) squares += (to_float(x[i * c + e]) - m) * (to_float(x[i * c + e]) - m);
    mean[i] = float(m);
    rstd[i] = float(1.0 / sqrt(squares / double(c) + eps));
    for (int64_t e = 0; e < c; ++e)
        y[i * c + e] = from_float<T>((to_float(x[i * c + e]) - mean[i]) * rstd[i] * (gamma ? gamma[e] : 1.0f) +
                                     (beta ? beta[e] : 0.0f));
}

template <class T>
__global__ void layer_norm_input_naive_kernel(int64_t rows, int64_t c, const T* dy, const T* x, const float* gamma,
                                              const float* mean, const float* rstd, T* dx) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows) return;
    double mean1 = 0, mean2 = 0;
    for (int64_t e = 0; e < c; ++e) {
        const float dxhat = to_float(dy[i * c + e]) * (gamma ? gamma[e] : 1.0f);  // 2
        mean1 += dxhat;
        mean2 += dxhat * ((to_float(x[i * c + e]) - mean[i]) * rstd[i]);
    }
    mean1 /= double(c), mean2 /= double(c);
    for (int64_t e = 0; e < c; ++e) {
        const float xhat = (to_float(x[i * c + e]) - mean[i]) * rstd[i];
        const float dxhat = to_float(dy[i * c + e]) * (gamma ? gamma[e] : 1.0f);
        dx[i * c + e] = from_float<T>(rstd[i] * (dxhat - float(mean1) - xhat * float(mean2)));  // 3
    }
}

// A thread makes a column.
template <class T>
__global__ void layer_norm_columns_naive_kernel(int64_t rows, int64_t c, const T* dy, const T* x, const float* mean,
                                                const float* rstd, float* dgamma, float* dbeta) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= c) return;
    double gamma_sum = 0, beta_sum = 0;  // 1
    for (int64_t i = 0; i < rows; ++i) {
        gamma_sum += to_float(dy[i * c + e]) * ((to_float(x[i * c + e]) - mean[i]) * rstd[i]);
        beta_sum += to_float(dy[i * c + e]);
    }
    if (dgamma) dgamma[e] = float(gamma_sum);
    if (dbeta) dbeta[e] = float(beta_sum);
}

// ---- a warp a row ------------------------------------------------------------------------------------------------

// f(e, count) for every access of this lane's share of a row.
template <int n, class F>
__device__ __forceinline__ void for_row(int64_t c, F f) {
    for (int64_t e = int64_t(threadIdx.x) * n; e < c; e += 32 * n) f(e);
}

template <class T>
__global__ void __launch_bounds__(32 * warps)
    layer_norm_kernel(int64_t rows, int64_t c, bool aligned, float eps, const T* __restrict__ x,
                      const float* __restrict__ gamma, const float* __restrict__ beta, T* __restrict__ y,
                      float* __restrict__ mean, float* __restrict__ rstd) {
    constexpr int n = width<T>;
    const int64_t i = int64_t(blockIdx.x) * warps + threadIdx.y;
    if (i >= rows) return;  // a whole warp
    x += i * c, y += i * c;
    // From the row's first element, so that values far from zero lose no digits.
    const float origin = to_float(x[0]);
    float sum = 0;
    for_row<n>(c, [&](int64_t e) {
        float v[n];
        load_upto(v, x + e, c - e, aligned);
#pragma unroll
        for (int k = 0; k < n; ++k) sum += e + k < c ? v[k] - origin : 0.0f;
    });
    const float m = origin + sum_of_warp(sum) / float(c);
    float squares = 0;
    for_row<n>(c, [&](int64_t e) {
        float v[n];
        load_upto(v, x + e, c - e, aligned);
#pragma unroll
        for (int k = 0; k < n; ++k) squares += e + k < c ? (v[k] - m) * (v[k] - m) : 0.0f;
    });
    const float r = 1.0f / sqrtf(sum_of_warp(squares) / float(c) + eps);
    for_row<n>(c, [&](int64_t e) {
        float v[n], g[n], b[n];
        load_upto(v, x + e, c - e, aligned);
        load_parameters(g, gamma, e, c, 1.0f, aligned);
        load_parameters(b, beta, e, c, 0.0f, aligned);
#pragma unroll
        for (int k = 0; k < n; ++k) v[k] = fmaf((v[k] - m) * r, g[k], b[k]);
        store_upto(y + e, v, c - e, aligned);
    });
    if (threadIdx.x == 0) mean[i] = m, rstd[i] = r;
}

template <class T>
__global__ void __launch_bounds__(32 * warps)
    layer_norm_input_kernel(int64_t rows, int64_t c, bool aligned, const T* __restrict__ dy, const T* __restrict__ x,
                            const float* __restrict__ gamma, const float* __restrict__ mean,
                            const float* __restrict__ rstd, T* __restrict__ dx) {
    constexpr int n = width<T>;
    const int64_t i = int64_t(blockIdx.x) * warps + threadIdx.y;
    if (i >= rows) return;
    dy += i * c, x += i * c, dx += i * c;
    const float m = mean[i], r = rstd[i];
    const auto load_row = [&](int64_t e, float(&dxhat)[n], float(&xhat)[n]) {  // 2; zeros behind the row
        float g[n];
        load_upto(dxhat, dy + e, c - e, aligned);
        load_upto(xhat, x + e, c - e, aligned);
        load_parameters(g, gamma, e, c, 1.0f, aligned);
#pragma unroll
        for (int k = 0; k < n; ++k) dxhat[k] *= g[k], xhat[k] = (xhat[k] - m) * r;
    };
    float sum1 = 0, sum2 = 0;
    for_row<n>(c, [&](int64_t e) {
        float dxhat[n], xhat[n];
        load_row(e, dxhat, xhat);
#pragma unroll
        for (int k = 0; k < n; ++k) sum1 += dxhat[k], sum2 = fmaf(dxhat[k], xhat[k], sum2);
    });
    const float mean1 = sum_of_warp(sum1) / float(c), mean2 = sum_of_warp(sum2) / float(c);
    for_row<n>(c, [&](int64_t e) {
        float dxhat[n], xhat[n];
        load_row(e, dxhat, xhat);
#pragma unroll
        for (int k = 0; k < n; ++k) dxhat[k] = r * (dxhat[k] - mean1 - xhat[k] * mean2);  // 3
        store_upto(dx + e, dxhat, c - e, aligned);
    });
}

// ---- columns -----------------------------------------------------------------------------------------------------

struct Chunks {
    int64_t rows, count;  // rows of a chunk (fewer in the last), chunks
    explicit Chunks(int64_t all)
        : rows(std::max(chunk_rows, (all + most_chunks - 1) / most_chunks)), count((all + rows - 1) / rows) {}
};

// Term 1 over a chunk: partial (chunks, 2, c), dbeta and then dgamma.
template <class T>
__global__ void __launch_bounds__(column_threads* row_threads)
    layer_norm_columns_kernel(int64_t rows, int64_t c, int64_t chunk, const T* __restrict__ dy,
                              const T* __restrict__ x, const float* __restrict__ mean,
                              const float* __restrict__ rstd, float* __restrict__ partial) {
    SHARED(float, sums, [2][row_threads][column_threads]);
    const int64_t e = int64_t(blockIdx.x) * column_threads + threadIdx.x, begin = int64_t(blockIdx.y) * chunk;
    const int64_t end = begin + chunk < rows ? begin + chunk : rows;
    float beta_sum = 0, gamma_sum = 0;
    for (int64_t i = begin + threadIdx.y; e < c && i < end; i += row_threads) {
        const float g = to_float(dy[i * c + e]);
        beta_sum += g;
        gamma_sum = fmaf(g, (to_float(x[i * c + e]) - mean[i]) * rstd[i], gamma_sum);
    }
    sums[0][threadIdx.y][threadIdx.x] = beta_sum;
    sums[1][threadIdx.y][threadIdx.x] = gamma_sum;
    __syncthreads();
    if (threadIdx.y > 1 || e >= c) return;
    float sum = 0;
    for (int k = 0; k < row_threads; ++k) sum += sums[threadIdx.y][k][threadIdx.x];
    partial[(blockIdx.y * 2 + int64_t(threadIdx.y)) * c + e] = sum;
}

__global__ void __launch_bounds__(128)
    layer_norm_chunks_kernel(int64_t count, int64_t c, const float* __restrict__ partial, float* __restrict__ dgamma,
                             float* __restrict__ dbeta) {
    const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    float* const to = j < c ? dbeta : dgamma;
    if (j >= 2 * c || !to) return;
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += double(partial[k * 2 * c + j]);
    to[j % c] = float(sum);
}

unsigned blocks_for(int64_t items, int each) { return unsigned((items + each - 1) / each); }

}  // namespace

template <class T>
void layer_norm_forward(int64_t rows, int64_t c, float eps, const T* x, const float* gamma, const float* beta, T* y,
                        float* mean, float* rstd, cudaStream_t stream) {
    if (rows == 0 || c == 0) return;
    if (use_naive)
        return launch<layer_norm_naive_kernel<T>>(dim3(blocks_for(rows, 128)), dim3(128), 0, stream, rows, c, eps, x,
                                                  gamma, beta, y, mean, rstd);
    const bool aligned = c % width<T> == 0 && aligned16({x, gamma, beta, y});
    launch<layer_norm_kernel<T>>(dim3(blocks_for(rows, warps)), dim3(32, warps), 0, stream, rows, c, aligned, eps, x,
                                 gamma, beta, y, mean, rstd);
}

size_t layer_norm_backward_workspace(int64_t rows, int64_t c) {
    return sizeof(float) * size_t(2 * Chunks(rows).count * c);
}

template <class T>
void layer_norm_backward(int64_t rows, int64_t c, const T* dy, const T* x, const float* gamma, const float* mean,
                         const float* rstd, T* dx, float* dgamma, float* dbeta, void* workspace, cudaStream_t stream) {
    if (c == 0) return;
    if (use_naive) {
        if (rows > 0)
            launch<layer_norm_input_naive_kernel<T>>(dim3(blocks_for(rows, 128)), dim3(128), 0, stream, rows, c, dy, x,
                                                     gamma, mean, rstd, dx);
        return launch<layer_norm_columns_naive_kernel<T>>(dim3(blocks_for(c, 128)), dim3(128), 0, stream, rows, c, dy,
                                                          x, mean, rstd, dgamma, dbeta);
    }
    const bool aligned = c % width<T> == 0 && aligned16({dy, x, gamma, dx});
    if (rows > 0)
        launch<layer_norm_input_kernel<T>>(dim3(blocks_for(rows, warps)), dim3(32, warps), 0, stream, rows, c, aligned,
                                           dy, x, gamma, mean, rstd, dx);
    if (!dgamma && !dbeta) return;
    const Chunks chunks(rows);
    float* const partial = static_cast<float*>(workspace);
    if (rows > 0)
        launch<layer_norm_columns_kernel<T>>(dim3(blocks_for(c, column_threads), unsigned(chunks.count)),
                                             dim3(column_threads, row_threads), 0, stream, rows, c, chunks.rows, dy, x,
                                             mean, rstd, partial);
    launch<layer_norm_chunks_kernel>(dim3(blocks_for(2 * c, 128)), dim3(128), 0, stream, chunks.count, c, partial,
                                     dgamma, dbeta);
}

#define PYDIFF_INSTANTIATE(T)                                                                                          \
    template void layer_norm_forward<T>(int64_t, int64_t, float, const T*, const float*, const float*, T*, float*,     \
                                        float*, cudaStream_t);                                                         \
    template void layer_norm_backward<T>(int64_t, int64_t, const T*, const T*, const float*, const float*,             \
                                         const float*, T*, float*, float*, void*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
