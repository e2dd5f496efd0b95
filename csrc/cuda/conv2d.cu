// conv2d: cross-correlation over channels-last pictures, and its gradients.
//
//   y[n, i, j, o] = bias[o] + sum_{a, b, c} x[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] w[a, b, c, o]
//
// with x = 0 outside the picture. Backward:
//     1. dx[n, p, q, c] = sum of dy[n, i, j, o] w[a, b, c, o] over o and all (i, a) with i stride_h + a - pad_top = p,
//                         (j, b) with j stride_w + b - pad_left = q
//     2. dw[a, b, c, o] = sum_{n, i, j} x[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] dy[n, i, j, o]
//     3. dbias[o]       = sum_{n, i, j} dy[n, i, j, o]
//
// A linear layer is a 1 x 1 kernel over n pictures of one pixel.
//
// Array path: pydiff/ops/conv2d.py. Reference: pydiff/reference/conv2d.py. CPU: csrc/cpu/conv2d.cpp.
//
// Layout: pictures (n, h, w, channels), weights (kh, kw, cin, cout). Each of the three is a product of matrices that
// tile_product.h makes, a tile a block. The matrix of pixels exists nowhere: its elements are copied from the pictures
// when a tile needs them (Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning", section 3).
//
//                       m: rows        n: columns   k: summed    left (m, k)          right (k, n)
//     forward           pixels of y    o            (a, b, c)    pixels of x, by k    w, by n
//     backward_input    pixels of x    c            (a, b, o)    pixels of dy, by k   w, by k
//     backward_weight   (a, b, c)      o            pixels of y  pixels of x, by m    dy, by n
//
// A sum's order does not depend on where in a tile its pixel is, so a picture's y and dx are the same alone and in any
// batch. backward_weight has few tiles and many pixels: these are cut into parts, whose sums are added in their order.
// Heights, widths and kh kw cin are counted in 32 bits, everything else in 64.
#include <algorithm>
#include <initializer_list>
#include <utility>

#include "tile_product.h"

namespace pydiff {
namespace {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- the equations, one thread an element: what the fast kernels are compared with -------------------------------

constexpr int flat_threads = 256;

template <class T>
__global__ void forward_naive_kernel(Conv2dShape s, const T* x, const T* w, const float* bias, T* y) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= s.n * s.oh * s.ow * s.cout) return;
    const int64_t o = e % s.cout, j = e / s.cout % s.ow, i = e / s.cout / s.ow % s.oh, n = e / s.cout / s.ow / s.oh;
    float sum = bias ? bias[o] : 0.0f;
    for (int64_t a = 0; a < s.kh; ++a)
        for (int64_t b = 0; b < s.kw; ++b) {
            const int64_t p = i * s.stride_h + a - s.pad_top, q = j * s.stride_w + b - s.pad_left;
            if (p < 0 || p >= s.h || q < 0 || q >= s.w) continue;
            for (int64_t c = 0; c < s.cin; ++c)
                sum += to_float(x[((n * s.h + p) * s.w + q) * s.cin + c]) *
                       to_float(w[((a * s.kw + b) * s.cin + c) * s.cout + o]);
        }
    y[e] = from_float<T>(sum);
}

template <class T>
__global__ void backward_input_naive_kernel(Conv2dShape s, const T* dy, const T* w, T* dx) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= s.n * s.h * s.w * s.cin) return;
    const int64_t c = e % s.cin, q = e / s.cin % s.w, p = e / s.cin / s.w % s.h, n = e / s.cin / s.w / s.h;
    float sum = 0.0f;
    for (int64_t a = 0; a < s.kh; ++a)
        for (int64_t b = 0; b < s.kw; ++b) {
            const int64_t down = p + s.pad_top - a, right = q + s.pad_left - b;  // i stride_h, j stride_w
            if (down < 0 || down % s.stride_h || right < 0 || right % s.stride_w) continue;
            const int64_t i = down / s.stride_h, j = right / s.stride_w;
            if (i >= s.oh || j >= s.ow) continue;
            for (int64_t o = 0; o < s.cout; ++o)  // 1
                sum += to_float(dy[((n * s.oh + i) * s.ow + j) * s.cout + o]) *
                       to_float(w[((a * s.kw + b) * s.cin + c) * s.cout + o]);
        }
    dx[e] = from_float<T>(sum);
}

template <class T>
__global__ void backward_weight_naive_kernel(Conv2dShape s, const T* dy, const T* x, float* dw, float* dbias) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, size = s.kh * s.kw * s.cin * s.cout;
    if (e >= size + s.cout) return;
    float sum = 0.0f;
    if (e >= size) {
        for (int64_t m = 0; m < s.n * s.oh * s.ow; ++m) sum += to_float(dy[m * s.cout + e - size]);  // 3
        if (dbias) dbias[e - size] = sum;
        return;
    }
    const int64_t o = e % s.cout, c = e / s.cout % s.cin, b = e / s.cout / s.cin % s.kw, a = e / s.cout / s.cin / s.kw;
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t i = 0; i < s.oh; ++i)
            for (int64_t j = 0; j < s.ow; ++j) {
                const int64_t p = i * s.stride_h + a - s.pad_top, q = j * s.stride_w + b - s.pad_left;
                if (p < 0 || p >= s.h || q < 0 || q >= s.w) continue;
                sum += to_float(x[((n * s.h + p) * s.w + q) * s.cin + c]) *
                       to_float(dy[((n * s.oh + i) * s.ow + j) * s.cout + o]);  // 2
            }
    dw[e] = sum;
}

// ---- where the operands lie --------------------------------------------------------------------------------------

// A place (outer, middle, inner) in a box of any number x middles x inners, walked in the order of memory: a tap with a
// channel (a, b, c), or a pixel (n, i, j). Steps are short, so counting is cheaper than dividing.
struct Walk {
    int64_t outer;
    int middle, inner, middles, inners;

    __device__ __forceinline__ Walk(int64_t at, int64_t middles, int64_t inners)
        : middles(middles ? int(middles) : 1), inners(inners ? int(inners) : 1) {  // an empty box is not walked
        outer = at / this->inners / this->middles;
        middle = int(at / this->inners % this->middles), inner = int(at % this->inners);
    }
    __device__ __forceinline__ void advance(int steps) {
        for (inner += steps; inner >= inners; inner -= inners)
            if (++middle == middles) middle = 0, ++outer;
    }
};

// ---- forward and backward_input ----------------------------------------------------------------------------------

// A convolution as its result sees it: `made` is y or dx, `source` x or dy.
struct Gather {
    struct Picture {
        int64_t h, w, channels;
    };
    Conv2dShape s;
    Picture made, source;
    int64_t classes_w, m_tiles, n_tiles;           // blocks count (class of rows, class of columns, m_tiles, n_tiles)
    bool source_vectors, w_vectors, made_vectors;  // whether these may be moved 16 bytes at a time
};

// One axis of it. Forward, y[i] sees x[i stride - pad + a] by tap a. Backward (1), x[p] sees dy[i] by tap a if
// i stride + a - pad = p. For the class of pixels p = r + stride p', that is a = (r + pad) mod stride + stride a' and
// i = p' + (r + pad) div stride - a'. So dx is stride interleaved pictures, each made by a convolution of stride 1.
//
// Both: pixel r + every i' (i' < pixels) sees source pixel i' scale + from, + a' forward or - a' backward, by tap
// first + every a' (a' < taps).
struct Axis {
    int64_t pixels, taps, every, first, scale, from;
};
template <bool backward>
__device__ __forceinline__ Axis axis(int64_t size, int64_t taps, int64_t stride, int64_t pad, int64_t r) {
    if (!backward) return {size, taps, 1, 0, stride, -pad};
    const int64_t first = (r + pad) % stride;
    return {ceil_div(size - r, stride), first < taps ? ceil_div(taps - first, stride) : 0, stride, first, 1,
            (r + pad) / stride};
}

template <class T, bool backward>
__global__ void __launch_bounds__(threads, resident<T>)
    conv2d_kernel(Gather g, const T* __restrict__ source, const T* __restrict__ w, const float* __restrict__ bias,
                  T* __restrict__ made) {
    // Where a row of the tile finds its source: the pixel of tap (0, 0), which may lie outside, and its element.
    struct alignas(16) Pixel {
        int64_t at;
        unsigned row, column;  // modulo 2^32: what lies above or left of the picture is far below or right of it
    };
    SHARED(Pixel, pixels, [m_tile]);
    DYNAMIC_SHARED(unsigned char, memory);
    constexpr int sign = backward ? -1 : 1;
    const Conv2dShape& s = g.s;
    const int64_t channels = g.source.channels, width = g.made.channels;

    const int64_t class_tile = blockIdx.x / g.n_tiles, m0 = class_tile % g.m_tiles * m_tile;
    const int64_t n0 = blockIdx.x % g.n_tiles * n_tile, r = class_tile / g.m_tiles;
    const Axis down = axis<backward>(g.made.h, s.kh, s.stride_h, s.pad_top, r / g.classes_w);
    const Axis along = axis<backward>(g.made.w, s.kw, s.stride_w, s.pad_left, r % g.classes_w);
    if (m0 >= s.n * down.pixels * along.pixels) return;

    // A thread prepares a row, and remembers which element of `made` it begins with.
    static_assert(threads == m_tile, "as many threads as rows");
    int64_t begin = -1;
    Pixel pixel = {0, 1u << 31, 1u << 31};  // no row: outside, for every tap
    const int64_t m = m0 + threadIdx.x, picture = m / along.pixels / down.pixels;
    if (picture < s.n) {
        const int64_t i = m / along.pixels % down.pixels, j = m % along.pixels;
        const int64_t row = i * down.scale + down.from, column = j * along.scale + along.from;
        pixel = {((picture * g.source.h + row) * g.source.w + column) * channels, unsigned(row), unsigned(column)};
        const int64_t p = r / g.classes_w + i * down.every, q = r % g.classes_w + j * along.every;
        begin = ((picture * g.made.h + p) * g.made.w + q) * width;
    }
    pixels[threadIdx.x] = pixel;
    __syncthreads();

    // k counts (a', b', channel), and a thread's copies of a step have one of them in common.
    Walk at(column<T, k_tile<T>>(g.source_vectors), along.taps, channels);
    const int64_t depth = down.taps * along.taps * channels;
    int64_t k = 0;
    const auto load = [&](T* left, T* right) {
        const int64_t a = at.outer, b = at.middle, c = at.inner;
        const bool inside = a < down.taps;
        const unsigned below = unsigned(sign * a), beside = unsigned(sign * b);
        const int64_t ahead = sign * (a * g.source.w + b) * channels + c;
        copy_tile<m_tile, k_tile<T>>(left, source, g.source_vectors, [&](int row) -> const T* {
            const Pixel p = pixels[row];
            const bool seen = inside && p.row + below < g.source.h && p.column + beside < g.source.w;
            return seen ? source + p.at + ahead : nullptr;
        });
        if constexpr (backward) {  // w (kh, kw, cin, cout): n counts cin, c is of cout
            const int64_t tap = (down.first + a * down.every) * s.kw + along.first + b * along.every;
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

    int64_t* begins = reinterpret_cast<int64_t*>(memory + sum_bytes);
    begins[threadIdx.x] = begin;
    __syncthreads();
    const int64_t n = n0 + threadIdx.x % 8 * 8;
    if (n >= width) return;
    float shift[8] = {};
    if (bias) load_upto(shift, bias + n, width - n, false);
    for_each_row(sums, [&](int row, int, float (&sum)[8]) {
        if (begins[row] < 0) return;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += shift[i];
        store_upto(made + begins[row] + n, sum, width - n, g.made_vectors);
    });
}

template <class T, bool backward>
void convolve(const Conv2dShape& s, const T* source, const T* w, const float* bias, T* made, cudaStream_t stream) {
    Gather g{s, {s.oh, s.ow, s.cout}, {s.h, s.w, s.cin}, 1, 0, 0, false, false, false};
    if (backward) std::swap(g.made, g.source);
    const int64_t sh = backward ? s.stride_h : 1, sw = backward ? s.stride_w : 1;
    g.m_tiles = ceil_div(s.n * ceil_div(g.made.h, sh) * ceil_div(g.made.w, sw), m_tile);  // of the largest class
    g.n_tiles = ceil_div(g.made.channels, n_tile);
    g.classes_w = std::min(sw, g.made.w);
    g.source_vectors = g.source.channels % chunk<T> == 0 && aligned16({source});
    g.w_vectors = s.cout % chunk<T> == 0 && aligned16({w});
    g.made_vectors = g.made.channels % 8 == 0 && aligned16({made});
    if (backward) g.source_vectors = g.w_vectors = g.source_vectors && g.w_vectors;  // both are by k, in one walk
    const int64_t blocks = std::min(sh, g.made.h) * g.classes_w * g.m_tiles * g.n_tiles;
    if (blocks == 0) return;
    launch<conv2d_kernel<T, backward>>(dim3(unsigned(blocks)), dim3(threads), Tiles<T, true, backward>::bytes, stream,
                                       g, source, w, bias, made);
}

// ---- backward_weight ---------------------------------------------------------------------------------------------

// Enough blocks for a large GPU, but no parts so short that writing and adding their sums costs more than making them.
// The cut depends on the sizes alone, so that the same call gives the same bits on any GPU.
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

// dw (kh kw cin, cout) and dbias from a part of the pixels. Every row of the grid makes one, `apart` floats further on.
template <class T>
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
    const T* from_dy = dy + first * s.cout + n;
    int rest = int(last - first);  // pixels
    const auto load = [&](T* left, T* right) {
        copy_tile<k_tile<T>, m_tile>(left, x, x_vectors, [&](int row) -> const T* {
            const unsigned p = pixel.middle * unsigned(s.stride_h) + down;
            const unsigned q = pixel.inner * unsigned(s.stride_w) + along;
            const bool seen = m < depth && row < rest && p < s.h && q < s.w;
            const T* from = x + ((pixel.outer * s.h + p) * s.w + q) * s.cin;
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
__global__ void __launch_bounds__(flat_threads)
    sum_parts_kernel(int64_t parts, int64_t size, int64_t cout, const float* __restrict__ partial,
                     float* __restrict__ dw, float* __restrict__ dbias) {
    const int64_t e = int64_t(blockIdx.x) * flat_threads + threadIdx.x;
    if (e >= size + cout || (e >= size && !dbias)) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * (size + cout) + e];
    *(e < size ? dw + e : dbias + e - size) = sum;
}

dim3 flat_grid(int64_t elements) { return dim3(unsigned(ceil_div(elements, flat_threads))); }

}  // namespace

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const float* bias, T* y, cudaStream_t stream) {
    const int64_t size = s.n * s.oh * s.ow * s.cout;
    if (size == 0) return;
    if (use_naive)
        return launch<forward_naive_kernel<T>>(flat_grid(size), dim3(flat_threads), 0, stream, s, x, w, bias, y);
    convolve<T, false>(s, x, w, bias, y, stream);
}

template <class T>
void conv2d_backward_input(const Conv2dShape& s, const T* dy, const T* w, T* dx, cudaStream_t stream) {
    const int64_t size = s.n * s.h * s.w * s.cin;
    if (size == 0) return;
    if (use_naive)
        return launch<backward_input_naive_kernel<T>>(flat_grid(size), dim3(flat_threads), 0, stream, s, dy, w, dx);
    convolve<T, true>(s, dy, w, nullptr, dx, stream);
}

size_t conv2d_backward_weight_workspace(const Conv2dShape& s) {
    const int64_t parts = parts_of(s).count;
    return parts == 1 ? 0 : size_t(parts * (s.kh * s.kw * s.cin + 1) * s.cout) * sizeof(float);
}

template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const T* dy, const T* x, float* dw, float* dbias, void* workspace,
                            cudaStream_t stream) {
    if (s.cout == 0) return;
    const int64_t size = s.kh * s.kw * s.cin * s.cout, apart = size + s.cout;
    if (use_naive)
        return launch<backward_weight_naive_kernel<T>>(flat_grid(apart), dim3(flat_threads), 0, stream, s, dy, x, dw,
                                                       dbias);
    const Parts parts = parts_of(s);
    float* dw_parts = parts.count > 1 ? static_cast<float*>(workspace) : dw;
    float* dbias_parts = parts.count > 1 && dbias ? dw_parts + size : dbias;
    // one block of rows at least: without input channels there is still a bias
    const int64_t tiles = std::max<int64_t>(ceil_div(size / s.cout, m_tile), 1) * ceil_div(s.cout, n_tile);
    launch<conv2d_weight_kernel<T>>(dim3(unsigned(tiles), unsigned(parts.count)), dim3(threads),
                                    Tiles<T, false, false>::bytes, stream, s, parts.pixels,
                                    s.cin % chunk<T> == 0 && aligned16({x}), s.cout % chunk<T> == 0 && aligned16({dy}),
                                    s.cout % 8 == 0 && aligned16({dw_parts}), apart, dy, x, dw_parts, dbias_parts);
    if (parts.count > 1)
        launch<sum_parts_kernel>(flat_grid(apart), dim3(flat_threads), 0, stream, parts.count, size, s.cout, dw_parts,
                                 dw, dbias);
}

#define PYDIFF_INSTANTIATE(T)                                                                                        \
    template void conv2d_forward<T>(const Conv2dShape&, const T*, const T*, const float*, T*, cudaStream_t);         \
    template void conv2d_backward_input<T>(const Conv2dShape&, const T*, const T*, T*, cudaStream_t);                \
    template void conv2d_backward_weight<T>(const Conv2dShape&, const T*, const T*, float*, float*, void*,           \
                                            cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
