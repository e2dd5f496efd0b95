// The backward kernels of group normalisation.
//
// For group_norm.cu, which has the equations and their numbers.
#pragma once
#include "group_norm_cut.h"

namespace pydiff {
namespace {

// What a backward kernel is given, besides x and dy.
struct Given {
    const float *gamma, *beta, *mean, *rstd;
};

// A pack of x and of dy.
template <class T>
struct Both {
    Pack<T, each<T>> x, dy;
};

// Sums a value of every channel over the rows of threads; store(channel - begin, sum) is called once for each of them.
template <int V, class Store>
__device__ __forceinline__ void sum_rows(const Cut& cut, int channels, const float (&value)[V], float* scratch,
                                         Store store) {
    const int stride = int(blockDim.x) + 32 / V;  // so that 32 neighbouring channels are in 32 banks
#pragma unroll
    for (int v = 0; v < V; ++v) scratch[v * stride + int(threadIdx.x)] = value[v];
    __syncthreads();
    for (int j = int(threadIdx.x); j < channels; j += int(blockDim.x)) {
        const float* const column = scratch + j % V * stride + j / V;
        float sum = 0;
#pragma unroll 8
        for (int row = 0; row < cut.down; ++row) sum += column[row * cut.across];
        store(j, sum);
    }
    __syncthreads();
}

// Term 2 over a chunk, and what 5 needs: row[0][j] = sum dz, row[1][j] = sum dz xhat, row[2][j] = sum (x - mean).
template <class T, bool with_silu, int in_flight, class Source>
__device__ __forceinline__ void channel_sums(const Cut& cut, const Part& part, const Given& given,
                                             const Source& x, const Source& dy, float* scratch,
                                             float* row /* (3, c), from the slab's first channel */) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    const float *const means = given.mean + part.group_at(cut), *const rstds = given.rstd + part.group_at(cut);
    for (int begin = 0; begin < part.channels; begin += cut.across * V) {
        const int channel = begin + seat.column * V;
        float sum_dz[V] = {}, sum_dz_centred[V] = {}, sum_centred[V] = {};
        if (seat.row < cut.down && channel < part.channels) {
            const Affine<V> affine(cut, part, channel, means, rstds, given.gamma + part.first_channel,
                                   given.beta + part.first_channel);
            for_pixels<in_flight>(
                seat.row, cut.down, part.pixels,
                [&](int p) { return Both<T>{x.load(p, channel), dy.load(p, channel)}; },
                [&](int, const Both<T>& pack) {
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        const float centred = to_float(pack.x.element[v]) - affine.mean[v];
                        float dz = to_float(pack.dy.element[v]);
                        if (with_silu) dz *= silu_derivative(affine.z(v, centred));  // 1
                        sum_dz[v] += dz;                                             // 2
                        sum_dz_centred[v] += dz * centred;                           // 2, less the factor rstd
                        sum_centred[v] += centred;
                    }
                });
        }
        const int left = part.channels - begin, tile = cut.across * V, channels = left < tile ? left : tile;
        float* const to = row + begin;
        sum_rows(cut, channels, sum_dz, scratch, [&](int j, float sum) { to[j] = sum; });
        sum_rows(cut, channels, sum_dz_centred, scratch,
                 [&](int j, float sum) { to[cut.c + j] = sum * rstds[(begin + j) / cut.width]; });
        sum_rows(cut, channels, sum_centred, scratch, [&](int j, float sum) { to[2 * cut.c + j] = sum; });
    }
}

// Term 3 over a chunk, for every lane of a warp: the sums of dxhat and of dxhat xhat over group g of the slab.
__device__ __forceinline__ float2 group_sums(const Cut& cut, const Part& part, int g, const float* gamma,
                                             const float* row) {
    float sum_dxhat = 0, sum_dxhat_xhat = 0;
    for (int j = g * cut.width + int(threadIdx.x) % 32; j < (g + 1) * cut.width; j += 32) {
        const float gamma_j = gamma[part.first_channel + j];
        sum_dxhat += gamma_j * row[j];  // 3
        sum_dxhat_xhat += gamma_j * row[cut.c + j];
    }
    return make_float2(warp_sum(sum_dxhat), warp_sum(sum_dxhat_xhat));
}

// Term 4 is dx = scale dz - offset - slope (x - mean) with these two for every group.
__device__ __forceinline__ void set_group_means(const Cut& cut, int g, float rstd, float2 sums, float* offsets,
                                                float* slopes) {
    const float m = float(cut.s) * float(cut.width);
    offsets[g] = rstd * (sums.x / m);
    slopes[g] = rstd * rstd * (sums.y / m);
}

// Terms 4 and 5: dx, and row[2] becomes its sum over the chunk.
template <class T, bool with_silu, int in_flight, class Source, bool aligned>
__device__ __forceinline__ void input_gradient(const Cut& cut, const Part& part, const Given& given,
                                               const Source& x, const Source& dy, const float* offsets,
                                               const float* slopes, const Rows<T, aligned>& dx, float* row) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    const float *const means = given.mean + part.group_at(cut), *const rstds = given.rstd + part.group_at(cut);
    for (int j = int(threadIdx.x); j < part.channels; j += int(blockDim.x)) {
        const int group = j / cut.width;
        row[2 * cut.c + j] = given.gamma[part.first_channel + j] * rstds[group] * row[j] -
                             float(part.pixels) * offsets[group] - slopes[group] * row[2 * cut.c + j];  // 5
    }
    for (int channel = seat.column * V; channel < part.channels && seat.row < cut.down; channel += cut.across * V) {
        const Affine<V> affine(cut, part, channel, means, rstds, given.gamma + part.first_channel,
                               given.beta + part.first_channel);
        int group[V];
        float offset[V], slope[V];
        find_groups(cut, part, channel, group);
#pragma unroll
        for (int v = 0; v < V; ++v) offset[v] = offsets[group[v]], slope[v] = slopes[group[v]];
        for_pixels<in_flight>(
            seat.row, cut.down, part.pixels,
            [&](int p) { return Both<T>{x.load(p, channel), dy.load(p, channel)}; },
            [&](int p, const Both<T>& pack) {
                Pack<T, V> result;
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const float centred = to_float(pack.x.element[v]) - affine.mean[v];
                    float dz = to_float(pack.dy.element[v]);
                    if (with_silu) dz *= silu_derivative(affine.z(v, centred));                                // 1
                    result.element[v] = from_float<T>(affine.scale[v] * dz - offset[v] - slope[v] * centred);  // 4
                }
                dx.store(p, channel, result);
            });
    }
}

template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(384)
    group_norm_backward_one_read_kernel(Cut cut, Given given, const T* __restrict__ dy, const T* __restrict__ x,
                                        T* __restrict__ dx, float* __restrict__ rows /* (n, 3, c) */) {
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(float, offsets, [most_groups]);
    SHARED(float, slopes, [most_groups]);
    T* const slabs = reinterpret_cast<T*>(shared);
    float* const scratch = reinterpret_cast<float*>(shared + cut.slab_bytes);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    const auto kept_x = fetch(cut, part, rows_of<aligned>(cut, part, x), slabs);
    const auto kept_dy = fetch(cut, part, rows_of<aligned>(cut, part, dy), slabs + cut.slab_bytes / 2 / sizeof(T));
    wait_copies<0>();
    float* const row = rows + part.row_at(cut);
    channel_sums<T, with_silu, 1>(cut, part, given, kept_x, kept_dy, scratch, row);
    for_groups(part, [&](int g) {
        const float2 sums = group_sums(cut, part, g, given.gamma, row);
        if (threadIdx.x % 32 == 0)
            set_group_means(cut, g, given.rstd[part.group_at(cut) + g], sums, offsets, slopes);
    });
    __syncthreads();
    input_gradient<T, with_silu, 1>(cut, part, given, kept_x, kept_dy, offsets, slopes, rows_of<aligned>(cut, part, dx),
                                    row);
}

// The first of two passes: the sums of every channel in every chunk, and those of the groups.
template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_sums_kernel(Cut cut, Given given, const T* __restrict__ dy, const T* __restrict__ x,
                           float2* __restrict__ partial /* (n, chunks, groups) */,
                           float* __restrict__ rows /* (n, chunks, 3, c) */) {
    DYNAMIC_SHARED(float, scratch);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    float* const row = rows + part.row_at(cut);
    channel_sums<T, with_silu, aligned ? 2 : 1>(cut, part, given, rows_of<aligned>(cut, part, x),
                                                rows_of<aligned>(cut, part, dy), scratch, row);
    for_groups(part, [&](int g) {
        const float2 sums = group_sums(cut, part, g, given.gamma, row);
        if (threadIdx.x % 32 == 0) partial[part.group_at(cut, part.chunk) + g] = sums;
    });
}

// The second: dx, and what a chunk gives to dx_sum in place of its sums of x.
template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_input_gradient_kernel(Cut cut, Given given, const T* __restrict__ dy, const T* __restrict__ x,
                                     const float2* __restrict__ partial, T* __restrict__ dx,
                                     float* __restrict__ rows) {
    SHARED(float, offsets, [most_groups]);
    SHARED(float, slopes, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    for_groups(part, [&](int g) {
        float2 sums = make_float2(0, 0);
        for (int k = int(threadIdx.x) % 32; k < cut.chunks; k += 32) {
            const float2 more = partial[part.group_at(cut, k) + g];
            sums.x += more.x, sums.y += more.y;
        }
        sums = make_float2(warp_sum(sums.x), warp_sum(sums.y));
        if (threadIdx.x % 32 == 0)
            set_group_means(cut, g, given.rstd[part.group_at(cut) + g], sums, offsets, slopes);
    });
    __syncthreads();
    input_gradient<T, with_silu, 2>(cut, part, given, rows_of<aligned>(cut, part, x), rows_of<aligned>(cut, part, dy),
                                    offsets, slopes, rows_of<aligned>(cut, part, dx), rows + part.row_at(cut));
}

// Terms 2 and 5 across the batch: the columns of rows (count, 3, c) added up in double.
constexpr int sum_columns = 32, sum_threads = 32;  // of a block, and how many threads share a column

__global__ void __launch_bounds__(sum_columns* sum_threads)
    group_norm_batch_kernel(int64_t count, int64_t c, const float* __restrict__ rows, float* __restrict__ dgamma,
                            float* __restrict__ dbeta, float* __restrict__ dx_sum /* or null */) {
    SHARED(double, sums, [sum_threads][sum_columns]);
    const int64_t j = int64_t(blockIdx.x) * sum_columns + threadIdx.x;
    const bool inside = j < (dx_sum ? 3 : 2) * c;
    double sum = 0;
#pragma unroll 4
    for (int64_t row = threadIdx.y; inside && row < count; row += sum_threads) sum += double(rows[row * 3 * c + j]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || !inside) return;
    sum = 0;
    for (int k = 0; k < sum_threads; ++k) sum += sums[k][threadIdx.x];
    float* const to = j < c ? dbeta : j < 2 * c ? dgamma : dx_sum;
    to[j % c] = float(sum);
}

}  // namespace
}  // namespace pydiff
