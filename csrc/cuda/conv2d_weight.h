// conv2d's backward_weight: sums over all pixels, made in parts.
//
// For conv2d.cu, which has the equations and their numbers.
#pragma once
#include "conv2d_walk.h"

namespace pydiff {
namespace {

// Enough blocks for a large GPU, but no parts so short that writing and adding their sums costs more than making them.
// The division depends only on the sizes, so that the same call gives the same bits on any GPU.
struct Parts {
    int64_t count, pixels;  // of a part
};
Parts parts_of(const Conv2dShape& s) {
    constexpr int64_t blocks = 512, most = 128, shortest = 256;
    const int64_t tiles = ceil_div(s.kh * s.kw * s.cin, m_tile) * ceil_div(s.cout, n_tile), all = s.n * s.oh * s.ow;
    const int64_t wanted = std::min(most, ceil_div(blocks, std::max<int64_t>(tiles, 1)));
    const int64_t pixels = std::max(shortest, ceil_div(ceil_div(all, wanted), shortest) * shortest);
    return {std::max<int64_t>(ceil_div(all, pixels), 1), pixels};
}

// dw (kh kw cin, cout) and a dbias for all samples from a part of the pixels. Every row of the grid makes one, `apart`
// floats further on.
template <class T, int up>
__global__ void __launch_bounds__(threads, resident<T>)
    conv2d_weight_kernel(Conv2dShape s, int64_t part, bool x_vectors, bool dy_vectors, bool dw_vectors, int64_t apart,
                         const T* __restrict__ dy, const T* __restrict__ x, float* __restrict__ dw,
                         float* __restrict__ dbias) {
    DYNAMIC_SHARED(unsigned char, memory);
    const int64_t depth = s.kh * s.kw * s.cin, n_tiles = ceil_div(s.cout, n_tile);
    const int64_t m0 = blockIdx.x / n_tiles * m_tile, n0 = blockIdx.x % n_tiles * n_tile;
    const int64_t first = blockIdx.y * part, all = s.n * s.oh * s.ow, last = first + part < all ? first + part : all;
    dw += blockIdx.y * apart;
    if (dbias) dbias += blockIdx.y * apart;

    // A thread copies one tap and channel (m) of many pixels of x, and one channel (n) of many of dy.
    const int64_t m = m0 + column<T, m_tile>(x_vectors), n = n0 + column<T, n_tile>(dy_vectors);
    const Walk tap(m, s.kw, s.cin);
    const unsigned down = unsigned(tap.outer - s.pad_top), along = unsigned(tap.middle - s.pad_left);
    const int step = rows_apart<T, m_tile>(x_vectors);
    Walk pixel(first + first_row<T, m_tile>(x_vectors), s.oh, s.ow);
    x += tap.inner;
    const int64_t h = s.h / up, width = s.w / up;  // of x
    const T* from_dy = dy + first * s.cout + n;
    int rest = int(last - first);  // pixels
    const auto load = [&](T* left, T* right) {
        copy_tile<k_tile<T>, m_tile>(left, x, x_vectors, [&](int row) -> const T* {
            const unsigned p = pixel.middle * unsigned(s.stride_h) + down;
            const unsigned q = pixel.inner * unsigned(s.stride_w) + along;
            const bool seen = m < depth && row < rest && p < s.h && q < s.w;
            const T* from = x + ((pixel.outer * h + p / up) * width + q / up) * s.cin;
            pixel.advance(step);
            return seen ? from : nullptr;
        });
        copy_tile<k_tile<T>, n_tile>(right, dy, dy_vectors, [&](int row) -> const T* {
            return n < s.cout && row < rest ? from_dy + row * s.cout : nullptr;
        });
        from_dy += k_tile<T> * s.cout;
        rest -= k_tile<T>;
    };
    // The first rows' blocks sum dy's columns as well, two threads to each: one the even rows, one the odd ones.
    const bool with_bias = dbias && m0 == 0;
    float half = 0.0f;
    const auto look = [&](const T* right) {
        if (!with_bias) return;
#pragma unroll 4
        for (int row = 0; row < k_tile<T>; row += 2)
            half += to_float(right[(row + int(threadIdx.x) / n_tile) * pitch<T, n_tile> + int(threadIdx.x) % n_tile]);
    };
    const float* sums = multiply<T, false, false>(ceil_div(last - first, k_tile<T>), memory, load, look);

    for_each_row(sums, [&](int row, int from, float (&sum)[8]) {  // 2
        const int64_t o = n0 + from;
        if (m0 + row < depth && o < s.cout) store_upto(dw + (m0 + row) * s.cout + o, sum, s.cout - o, dw_vectors);
    });
    if (!with_bias) return;
    float* halves = reinterpret_cast<float*>(memory + sum_bytes);
    halves[threadIdx.x] = half;
    __syncthreads();
    if (threadIdx.x < n_tile && n0 + threadIdx.x < s.cout)  // 3
        dbias[n0 + threadIdx.x] = halves[threadIdx.x] + halves[threadIdx.x + n_tile];
}

// dw and dbias as sums over the parts, in their order.
constexpr int sum_threads = 256;
__global__ void __launch_bounds__(sum_threads)
    sum_parts_kernel(int64_t parts, int64_t size, int64_t cout, const float* __restrict__ partial,
                     float* __restrict__ dw, float* __restrict__ dbias) {
    const int64_t e = int64_t(blockIdx.x) * sum_threads + threadIdx.x;
    if (e >= size + cout || (e >= size && !dbias)) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * (size + cout) + e];
    *(e < size ? dw + e : dbias + e - size) = sum;
}

// A dbias for each sample: a block sums n_tile channels of a sample, eight of them a thread, which takes every
// bias_rows-th pixel; then the rows of threads are added in their order.
constexpr int bias_rows = 32, bias_threads = bias_rows * n_tile / 8;
template <class T>
__global__ void __launch_bounds__(bias_threads)
    sample_bias_kernel(int64_t n, int64_t pixels, int64_t cout, bool dy_vectors, const T* __restrict__ dy,
                       float* __restrict__ dbias) {
    SHARED(float, sums, [n_tile][bias_rows + 1]);
    const int row = int(threadIdx.x) / (n_tile / 8), channel = int(threadIdx.x) % (n_tile / 8) * 8;
    const int64_t first = int64_t(blockIdx.x) * n_tile, o = first + channel;
    for (int64_t sample = blockIdx.y; sample < n; sample += gridDim.y) {
        const T* from = dy + sample * pixels * cout + o;
        float sum[8] = {};
#pragma unroll 4
        for (int64_t p = row; o < cout && p < pixels; p += bias_rows) {
            float some[8];
            load_upto(some, from + p * cout, cout - o, dy_vectors);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += some[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[channel + i][row] = sum[i];
        __syncthreads();
        if (threadIdx.x < n_tile && first + threadIdx.x < cout) {
            float total = 0.0f;
#pragma unroll
            for (int k = 0; k < bias_rows; ++k) total += sums[threadIdx.x][k];
            dbias[sample * cout + first + threadIdx.x] = total;  // 3
        }
        __syncthreads();
    }
}

}  // namespace
}  // namespace pydiff
