// The forward kernels of group normalisation, and the statistics they need.
//
// For group_norm.cu, which has the equations and their numbers.
#pragma once
#include "group_norm_cut.h"

namespace pydiff {
namespace {

// ---- statistics --------------------------------------------------------------------------------------------------

// Of some elements: their number, their mean, and the sum of their squared deviations from it.
struct Moments {
    float count, mean, m2;
};

// The moments of all elements that part(0) .. part(parts - 1) describe, for every lane of a warp:
//     mean = sum_k count_k mean_k / count,   m2 = sum_k m2_k + count_k (mean_k - mean)^2
// which is the formula of Chan, Golub and LeVeque (1983) for many parts at once. Means are taken from the first one, so
// that nothing cancels where all of them are far from zero.
template <class Part>
__device__ __forceinline__ Moments merge(int parts, Part part) {
    const int lane = int(threadIdx.x) % 32;
    const float origin = part(0).mean;
    float count = 0, sum = 0, m2 = 0;
    for (int k = lane; k < parts; k += 32) {
        const Moments m = part(k);
        count += m.count;
        sum += m.count * (m.mean - origin);
    }
    count = warp_sum(count);
    const float shift = warp_sum(sum) / count;
    for (int k = lane; k < parts; k += 32) {
        const Moments m = part(k);
        const float deviation = m.mean - origin - shift;
        m2 += m.m2 + m.count * (deviation * deviation);
    }
    return {count, origin + shift, warp_sum(m2)};
}

// The moments of each channel of a thread's pack over its pixels, merged in pieces; mean[v] and m2[v] of the first
// channel v of a piece describe all of it. Deviations are taken from the thread's first pixel: where that one is far
// from the others, so much of the variance is its own that the digits which cancel are not missed.
template <class T, int in_flight, class Source>
__device__ __forceinline__ void pack_moments(const Cut& cut, const Part& part, const Seat& seat, int channel,
                                             const Source& x, float (&mean)[each<T>], float (&m2)[each<T>]) {
    constexpr int V = each<T>;
    float origin[V], sum1[V] = {}, sum2[V] = {};
    const auto first = x.load(seat.row, channel);
#pragma unroll
    for (int v = 0; v < V; ++v) origin[v] = to_float(first.element[v]);
    for_pixels<in_flight>(
        seat.row, cut.down, part.pixels, [&](int p) { return x.load(p, channel); },
        [&](int, const auto& pack) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float d = to_float(pack.element[v]) - origin[v];
                sum1[v] += d;
                sum2[v] += d * d;
            }
        });
    const float count = float((part.pixels - seat.row + cut.down - 1) / cut.down);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        const float shift = sum1[v] / count, rest = sum2[v] - shift * sum1[v];
        mean[v] = origin[v] + shift;
        m2[v] = rest < 0 ? 0 : rest;  // rounding; NaN stays NaN
    }
#pragma unroll
    for (int half = 1; half < V; half *= 2) {
        if (half >= cut.piece) break;
#pragma unroll
        for (int v = 0; v < V; v += 2 * half) {  // both have count * half elements
            const float delta = mean[v + half] - mean[v];
            mean[v] += 0.5f * delta;
            m2[v] += m2[v + half] + 0.5f * float(half) * count * (delta * delta);
        }
    }
}

// The moments of the slab's groups over a chunk. All threads of the block call it and may use of_group afterwards.
template <class T, int in_flight, class Source>
__device__ __forceinline__ void slab_moments(const Cut& cut, const Part& part, const Source& x, float* scratch,
                                             Moments* of_group /* (groups), shared */) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    const int pieces = V / cut.piece, stride = int(blockDim.x) + 1;
    const int rows = part.pixels < cut.down ? part.pixels : cut.down;
    float *const means = scratch, *const m2s = scratch + pieces * stride;
    for (int begin = 0; begin < part.channels; begin += cut.across * V) {  // once, unless groups are very wide
        const int channel = begin + seat.column * V;
        if (seat.row < rows && channel < part.channels) {
            float mean[V], m2[V];
            pack_moments<T, in_flight>(cut, part, seat, channel, x, mean, m2);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                if (v % cut.piece) continue;
                means[v / cut.piece * stride + int(threadIdx.x)] = mean[v];
                m2s[v / cut.piece * stride + int(threadIdx.x)] = m2[v];
            }
        }
        __syncthreads();
        const int left = part.channels - begin, tile = cut.across * V, end = begin + (left < tile ? left : tile);
        for (int g = begin / cut.width + int(threadIdx.x) / 32; g * cut.width < end; g += int(blockDim.x) / 32) {
            int from = g * cut.width, to = from + cut.width;
            const bool begun = from < begin;  // in the columns before, whose result is one more part
            if (from < begin) from = begin;
            if (to > end) to = end;
            const int first = (from - begin) / cut.piece, count = (to - from) / cut.piece;
            const Moments m = merge(rows * count + begun, [&](int k) {
                const int row = k / count, piece = first + k % count;
                if (row == rows) return of_group[g];
                const int at = piece % pieces * stride + row * cut.across + piece / pieces;
                return Moments{float((part.pixels - row + cut.down - 1) / cut.down * cut.piece), means[at], m2s[at]};
            });
            __syncwarp();
            if (threadIdx.x % 32 == 0) of_group[g] = m;
        }
        __syncthreads();
    }
}

// mean and rstd of group g of the slab: for the block, and once for the caller.
__device__ __forceinline__ void set_statistics(const Cut& cut, const Part& part, int g, const Moments& m, float eps,
                                               float* means, float* rstds, float* mean, float* rstd) {
    means[g] = m.mean;
    rstds[g] = 1.0f / sqrtf(m.m2 / m.count + eps);
    if (part.chunk == 0) {
        mean[part.group_at(cut) + g] = means[g];
        rstd[part.group_at(cut) + g] = rstds[g];
    }
}

// ---- forward -----------------------------------------------------------------------------------------------------

template <class T, bool with_silu, int in_flight, class Source, bool aligned>
__device__ __forceinline__ void normalise(const Cut& cut, const Part& part, const Source& x, const float* means,
                                          const float* rstds, const float* gamma, const float* beta,
                                          const Rows<T, aligned>& y) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    for (int channel = seat.column * V; channel < part.channels && seat.row < cut.down; channel += cut.across * V) {
        const Affine<V> affine(cut, part, channel, means, rstds, gamma + part.first_channel, beta + part.first_channel);
        for_pixels<in_flight>(
            seat.row, cut.down, part.pixels, [&](int p) { return x.load(p, channel); },
            [&](int p, auto pack) {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const float z = affine.z(v, to_float(pack.element[v]) - affine.mean[v]);
                    pack.element[v] = from_float<T>(with_silu ? silu(z) : z);
                }
                y.store(p, channel, pack);
            });
    }
}

template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(384)
    group_norm_one_read_kernel(Cut cut, float eps, const T* __restrict__ x, const float* __restrict__ gamma,
                               const float* __restrict__ beta, T* __restrict__ y, float* __restrict__ mean,
                               float* __restrict__ rstd) {
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(Moments, of_group, [most_groups]);
    SHARED(float, means, [most_groups]);
    SHARED(float, rstds, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    const auto kept = fetch(cut, part, rows_of<aligned>(cut, part, x), reinterpret_cast<T*>(shared));
    wait_copies<0>();
    slab_moments<T, 2>(cut, part, kept, reinterpret_cast<float*>(shared + cut.slab_bytes), of_group);
    for (int g = int(threadIdx.x); g < part.groups; g += int(blockDim.x))
        set_statistics(cut, part, g, of_group[g], eps, means, rstds, mean, rstd);
    __syncthreads();
    normalise<T, with_silu, 2>(cut, part, kept, means, rstds, gamma, beta, rows_of<aligned>(cut, part, y));
}

// The first of two passes: (mean, m2) of every group in every chunk.
template <class T, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_moments_kernel(Cut cut, const T* __restrict__ x,
                              float2* __restrict__ partial /* (n, chunks, groups) */) {
    DYNAMIC_SHARED(float, scratch);
    SHARED(Moments, of_group, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    slab_moments<T, aligned ? 4 : 1>(cut, part, rows_of<aligned>(cut, part, x), scratch, of_group);
    for (int g = int(threadIdx.x); g < part.groups; g += int(blockDim.x))
        partial[part.group_at(cut, part.chunk) + g] = make_float2(of_group[g].mean, of_group[g].m2);
}

// The second: every block merges the moments of its groups, which are few, and normalises its chunk.
template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_normalise_kernel(Cut cut, float eps, const T* __restrict__ x, const float* __restrict__ gamma,
                                const float* __restrict__ beta, const float2* __restrict__ partial, T* __restrict__ y,
                                float* __restrict__ mean, float* __restrict__ rstd) {
    SHARED(float, means, [most_groups]);
    SHARED(float, rstds, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    for_groups(part, [&](int g) {
        const Moments m = merge(cut.chunks, [&](int k) {
            const float2 moments = partial[part.group_at(cut, k) + g];
            const int64_t left = cut.s - int64_t(k) * cut.chunk;
            return Moments{float((left < cut.chunk ? left : cut.chunk) * cut.width), moments.x, moments.y};
        });
        if (threadIdx.x % 32 == 0) set_statistics(cut, part, g, m, eps, means, rstds, mean, rstd);
    });
    __syncthreads();
    normalise<T, with_silu, aligned ? 2 : 1>(cut, part, rows_of<aligned>(cut, part, x), means, rstds, gamma, beta,
                                             rows_of<aligned>(cut, part, y));
}

}  // namespace
}  // namespace pydiff
