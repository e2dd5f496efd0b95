// conv2d's forward and backward_input: every element of the result gathers what it is the sum of.
//
// For conv2d.cu, which has the equations and their numbers. With up = 2 no image of X's size is made: forward reads x
// itself, and dx's sum over e and f is one with that over taps and channels. Taps that meet the same pixel of x are
// multiplied one by one all the same. To add up their filters first would leave 16 products of 36 for a 3 x 3 kernel,
// but bfloat16 would round the sums, once more than the equation does.
#pragma once
#include <type_traits>
#include <utility>

#include "conv2d_walk.h"

namespace pydiff {
namespace {

// ---- which pixel of the source a pixel of the result sees by which tap ----------------------------------------------

// Along one axis. The result falls into classes of pixels r, r + every, r + 2 every, .. that see the source alike: it
// is as many interleaved images, each made by a convolution without gaps. Pixel r + every i' sees source pixel
// i' scale + from + ahead(t) by tap(t), for every t < taps.
//
// up is 1 or 2, so it divides the stride or has no factor in common with it:
template <int up>
__host__ __device__ constexpr int64_t common_factor(int64_t stride) { return up == 2 && stride % 2 == 0 ? 2 : 1; }

// Forward: y[i] sees X[i stride - pad + a], which is x[floor((i stride - pad + a) / up)], by tap a.
template <int up>
struct ForwardAxis {
    int64_t every, scale, pixels, from;
    int taps, odd;

    __host__ __device__ static constexpr int64_t classes(int64_t stride) { return up / common_factor<up>(stride); }
    __device__ __forceinline__ ForwardAxis(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t r)
        : every(classes(stride)), scale(stride / common_factor<up>(stride)), pixels(ceil_div(size - r, every)),
          from((r * stride - pad) >> (up - 1)), taps(int(kernel)), odd(int(r * stride - pad) & (up - 1)) {}
    __device__ __forceinline__ int ahead(int t) const { return (odd + t) >> (up - 1); }
    __device__ __forceinline__ int tap(int t) const { return t; }
};

// Backward (1): x[p] sees dy[i] by tap a if i stride + a - pad = up p + e for an e < up. With p = r + every p', that is
// a = (up r + e + pad) mod stride + stride a' and i = p' scale + (up r + e + pad) div stride - a'. First come the taps
// of e = 0, then those of e = 1.
template <int up>
struct BackwardAxis {
    int64_t every, scale, pixels, from;
    int taps, first[up], count[up];  // a's of each e: the first, and how many
    int further;                     // the first a of the last e sees dy `further` ahead of that of the first e
    int64_t stride;

    __host__ __device__ static constexpr int64_t classes(int64_t stride) { return stride / common_factor<up>(stride); }
    __device__ __forceinline__ BackwardAxis(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t r)
        : every(classes(stride)), scale(up / common_factor<up>(stride)), pixels(ceil_div(size - r, every)),
          from((up * r + pad) / stride), taps(0), stride(stride) {
#pragma unroll
        for (int e = 0; e < up; ++e) {
            const int64_t at = up * r + e + pad, a = at % stride;
            first[e] = int(a), count[e] = a < kernel ? int(ceil_div(kernel - a, stride)) : 0;
            taps += count[e], further = int(at / stride - from);
        }
    }
    __device__ __forceinline__ int ahead(int t) const { return t < count[0] ? -t : further + count[0] - t; }
    __device__ __forceinline__ int64_t tap(int t) const {
        return t < count[0] ? first[0] + stride * t : first[up - 1] + stride * (t - count[0]);
    }
};

// ---- the kernel ----------------------------------------------------------------------------------------------------

// A convolution as its result sees it: `made` is y or dx, `source` x or dy.
struct Gather {
    struct Image {
        int64_t h, w, channels;
    };
    Conv2dShape s;
    Image made, source;
    int64_t classes_w, m_tiles, n_tiles;  // blocks count (class of rows, class of columns, m_tiles, n_tiles)
    int64_t bias_step;
    // whether these may be moved 16 bytes at a time
    bool source_vectors, w_vectors, made_vectors, bias_vectors, add_vectors;
};

template <class T, bool backward, int up>
__global__ void __launch_bounds__(threads, resident<T>)
    conv2d_kernel(Gather g, const T* __restrict__ source, const T* __restrict__ w, const float* __restrict__ bias,
                  const T* __restrict__ add, T* __restrict__ made) {
    using Axis = std::conditional_t<backward, BackwardAxis<up>, ForwardAxis<up>>;
    // Where a row of the tile finds its source: the pixel of tap (0, 0), which may lie outside, and its element.
    struct alignas(16) Pixel {
        int64_t at;
        unsigned row, column;  // modulo 2^32: what lies above or left of the image is far below or right of it
    };
    SHARED(Pixel, pixels, [m_tile]);
    // Where it begins in `made`, and what belongs to it in `bias`.
    struct alignas(16) Result {
        int64_t begin, bias;
    };
    SHARED(Result, results, [m_tile]);
    DYNAMIC_SHARED(unsigned char, memory);
    const Conv2dShape& s = g.s;
    const int64_t channels = g.source.channels, width = g.made.channels;

    const int64_t class_tile = blockIdx.x / g.n_tiles, m0 = class_tile % g.m_tiles * m_tile;
    const int64_t n0 = blockIdx.x % g.n_tiles * n_tile, r = class_tile / g.m_tiles;
    const Axis down(g.made.h, s.kh, s.stride_h, s.pad_top, r / g.classes_w);
    const Axis along(g.made.w, s.kw, s.stride_w, s.pad_left, r % g.classes_w);
    if (m0 >= s.n * down.pixels * along.pixels) return;

    // A thread prepares a row.
    static_assert(threads == m_tile, "as many threads as rows");
    Pixel pixel = {0, 1u << 31, 1u << 31};  // no row: outside, for every tap
    Result result = {-1, 0};
    const int64_t m = m0 + threadIdx.x, image = m / along.pixels / down.pixels;
    if (image < s.n) {
        const int64_t i = m / along.pixels % down.pixels, j = m % along.pixels;
        const int64_t row = i * down.scale + down.from, column = j * along.scale + along.from;
        pixel = {((image * g.source.h + row) * g.source.w + column) * channels, unsigned(row), unsigned(column)};
        const int64_t p = r / g.classes_w + i * down.every, q = r % g.classes_w + j * along.every;
        result = {((image * g.made.h + p) * g.made.w + q) * width, image * g.bias_step};
    }
    pixels[threadIdx.x] = pixel, results[threadIdx.x] = result;
    __syncthreads();

    // k counts (t down, t along, channel), and a thread's copies of a step have one of them in common.
    Walk at(column<T, k_tile<T>>(g.source_vectors), along.taps, channels);
    const int64_t depth = int64_t(down.taps) * along.taps * channels;
    int64_t k = 0;
    const auto load = [&](T* left, T* right) {
        const int a = int(at.outer), b = at.middle, c = at.inner;
        const bool inside = at.outer < down.taps;
        const unsigned below = unsigned(down.ahead(a)), beside = unsigned(along.ahead(b));
        int64_t ahead = (down.ahead(a) * g.source.w + along.ahead(b)) * channels + c;
        compute_once(ahead);
        copy_tile<m_tile, k_tile<T>>(left, source, g.source_vectors, [&](int row) -> const T* {
            const Pixel p = pixels[row];
            const bool seen = inside && p.row + below < g.source.h && p.column + beside < g.source.w;
            return seen ? source + p.at + ahead : nullptr;
        });
        if constexpr (backward) {  // w (kh, kw, cin, cout): n counts cin, c is of cout
            const int64_t tap = down.tap(a) * s.kw + along.tap(b);
            copy_tile<n_tile, k_tile<T>>(right, w, g.w_vectors, [&](int n) -> const T* {
                return inside && n0 + n < width ? w + (tap * width + n0 + n) * channels + c : nullptr;
            });
        } else {  // w is a matrix (k, cout)
            const int64_t n = n0 + column<T, n_tile>(g.w_vectors);
            copy_tile<k_tile<T>, n_tile>(right, w, g.w_vectors, [&](int row) -> const T* {
                return k + row < depth && n < width ? w + (k + row) * width + n : nullptr;
            });
            k += k_tile<T>;
        }
        at.advance(k_tile<T>);
    };
    const float* sums = multiply<T, true, backward>(ceil_div(depth, k_tile<T>), memory, load, [](const T*) {});

    const int64_t n = n0 + threadIdx.x % 8 * 8;
    if (n >= width) return;
    float shift[8] = {};
    if (!backward && bias) load_upto(shift, bias + n, width - n, g.bias_vectors);
    for_each_row(sums, [&](int row, int, float (&sum)[8]) {
        const Result to = results[row];
        if (to.begin < 0) return;
        if constexpr (!backward) {
            if (g.bias_step) load_upto(shift, bias + to.bias + n, width - n, g.bias_vectors);
            float more[8] = {};
            if (add) load_upto(more, add + to.begin + n, width - n, g.add_vectors);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = sum[i] + shift[i] + more[i];
        }
        store_upto(made + to.begin + n, sum, width - n, g.made_vectors);
    });
}

template <class T, bool backward, int up>
void convolve(const Conv2dShape& s, const T* source, const T* w, const Conv2dAddends<T>& addends, T* made,
              cudaStream_t stream) {
    using Axis = std::conditional_t<backward, BackwardAxis<up>, ForwardAxis<up>>;
    Gather g{};
    g.s = s, g.made = {s.oh, s.ow, s.cout}, g.source = {s.h / up, s.w / up, s.cin};
    if (backward) std::swap(g.made, g.source);
    const int64_t every_h = Axis::classes(s.stride_h), every_w = Axis::classes(s.stride_w);
    g.classes_w = std::min(every_w, g.made.w);
    const int64_t largest = s.n * ceil_div(g.made.h, every_h) * ceil_div(g.made.w, every_w);  // class, in pixels
    g.m_tiles = ceil_div(largest, m_tile);
    g.n_tiles = ceil_div(g.made.channels, n_tile);
    g.source_vectors = g.source.channels % chunk<T> == 0 && aligned16({source});
    g.w_vectors = s.cout % chunk<T> == 0 && aligned16({w});
    if (backward) g.source_vectors = g.w_vectors = g.source_vectors && g.w_vectors;  // both are by k, in one walk
    g.made_vectors = g.made.channels % 8 == 0 && aligned16({made});
    g.add_vectors = g.made.channels % 8 == 0 && aligned16({addends.add});
    g.bias_step = addends.bias ? addends.bias_step : 0;
    g.bias_vectors = g.bias_step % 4 == 0 && aligned16({addends.bias});
    const int64_t blocks = std::min(every_h, g.made.h) * g.classes_w * g.m_tiles * g.n_tiles;
    if (blocks == 0) return;
    launch<conv2d_kernel<T, backward, up>>(dim3(unsigned(blocks)), dim3(threads), Tiles<T, true, backward>::bytes,
                                           stream, g, source, w, addends.bias, addends.add, made);
}

}  // namespace
}  // namespace pydiff
