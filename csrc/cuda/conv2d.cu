// conv2d: cross-correlation over channels-last pictures, and its gradients.
//
//     y[n, i, j, o] = bias[o] + sum_{a, b, c} x[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] w[a, b, c, o]
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
// Layout: pictures (n, h, w, channels), weights (kh, kw, cin, cout). Each of the three is a product of two matrices, of
// which the one made of pixels exists nowhere: its elements are read from the pictures, tile by tile (Chetlur et al. 2014,
// "cuDNN: Efficient Primitives for Deep Learning", section 3.2).
//
//                       m: rows        n: columns   k: summed    left (m, k)          right (k, n)
//     forward           pixels of y    o            (a, b, c)    pixels of x, by k    w, by n
//     backward_input    pixels of x    c            (a, b, o)    pixels of dy, by k   w, by k
//     backward_weight   (a, b, c)      o            pixels of y  pixels of x, by m    dy, by n
//
// "By k" says which axis is contiguous. A block makes a tile of 128 x 64 of the result. Tiles of both operands, 64 bytes
// of k deep, come to shared memory as they lie in global memory, by asynchronous copies two steps ahead, 16 bytes at a
// time where channels and addresses allow and single elements elsewhere. bfloat16 is multiplied on tensor cores, float32
// in registers. Sums are float32, in the order of k: a picture's y and dx are the same alone and in any batch.
// backward_weight has few tiles and many pixels, so the pixels are cut into parts whose sums are added in their order.
#include <algorithm>
#include <initializer_list>

#include "../simt/ptx.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int threads = 128, m_tile = 128, n_tile = 64, stages = 3;
template <class T>
constexpr int k_tile = 64 / int(sizeof(T));
template <class T>
constexpr int chunk = 16 / int(sizeof(T));  // elements of a vector copy
template <class T>
constexpr int resident = sizeof(T) == 2 ? 4 : 3;  // blocks at a time on a multiprocessor: 128 or 168 registers a thread
// Rows of a tile are 16 bytes further apart than they are long. Eight of them then start in different banks, whether they
// are 64, 128, 256 or 512 bytes long.
template <class T, int width>
constexpr int pitch = width + chunk<T>;
constexpr int sum_pitch = n_tile + 8;
constexpr int sum_bytes = m_tile * sum_pitch * int(sizeof(float));

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- the equations, one thread an element: what the fast kernels are compared with -------------------------------

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
        for (int64_t pixel = 0; pixel < s.n * s.oh * s.ow; ++pixel) sum += to_float(dy[pixel * s.cout + e - size]);  // 3
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

// ---- tiles in shared memory --------------------------------------------------------------------------------------

// What a thread copies of a tile `width` wide, by single elements or by vectors: the same column in all rows, from
// first_row on every rows_apart.
template <class T, int width>
__device__ __forceinline__ int column(bool vectors) {
    return vectors ? int(threadIdx.x) % (width / chunk<T>) * chunk<T> : int(threadIdx.x) % width;
}
template <class T, int width>
__device__ __forceinline__ int first_row(bool vectors) {
    return int(threadIdx.x) / (vectors ? width / chunk<T> : width);
}
template <class T, int width>
__device__ __forceinline__ int rows_apart(bool vectors) {
    return threads / (vectors ? width / chunk<T> : width);
}

// Starts the copies of this thread into a tile [rows][width], `count` elements at a time. source(row), called for ascending
// rows, says where those of its column are: null stands for zeros; `any` is then the address that is named but not read.
template <int rows, int width, int count, class T, class Source>
__device__ __forceinline__ void copy_rows(T* tile, const T* any, Source& source) {
    constexpr int across = width / count, bytes = count * int(sizeof(T));
    static_assert(threads % across == 0 && rows % (threads / across) == 0, "every thread copies as many elements");
    T* to = tile + int(threadIdx.x) / across * pitch<T, width> + int(threadIdx.x) % across * count;
#pragma unroll 4
    for (int i = 0; i < rows; i += threads / across) {
        const T* from = source(int(threadIdx.x) / across + i);
        if constexpr (bytes >= 4)
            copy_async<bytes>(to + i * pitch<T, width>, from ? from : any, from ? bytes : 0);
        else
            to[i * pitch<T, width>] = from ? *from : from_float<T>(0.0f);
    }
}
template <int rows, int width, class T, class Source>
__device__ __forceinline__ void copy_tile(T* tile, const T* any, bool vectors, Source source) {
    if (vectors)
        copy_rows<rows, width, chunk<T>>(tile, any, source);
    else
        copy_rows<rows, width, 1>(tile, any, source);
}

// What a block needs to know of its product: where k is contiguous, and so how tiles lie in shared memory.
template <class T, bool left_by_k, bool right_by_k>
struct Tiles {
    static constexpr int left_pitch = pitch<T, left_by_k ? k_tile<T> : m_tile>;
    static constexpr int right_pitch = pitch<T, right_by_k ? k_tile<T> : n_tile>;
    static constexpr int left_size = (left_by_k ? m_tile : k_tile<T>) * left_pitch;
    static constexpr int stage_size = left_size + (right_by_k ? n_tile : k_tile<T>) * right_pitch;
    static constexpr int bytes = std::max(stages * stage_size * int(sizeof(T)), sum_bytes + threads * int(sizeof(float)));
};

// The sums of one thread: add() multiplies two tiles, put() lays the result into sums[m][n].
template <class T, bool left_by_k, bool right_by_k>
struct Product;

// Tensor cores. Four warps make 64 x 32 each, in 4 x 4 pieces of 16 x 8, from fragments of 16 x 16 on either side.
template <bool left_by_k, bool right_by_k>
struct Product<bfloat16, left_by_k, right_by_k> {
    using Lies = Tiles<bfloat16, left_by_k, right_by_k>;
    float sum[4][4][4] = {};
    int lane = int(threadIdx.x) % 32, m0 = int(threadIdx.x) / 64 * 64, n0 = int(threadIdx.x) / 32 % 2 * 32;

    __device__ __forceinline__ void add(const bfloat16* left, const bfloat16* right) {
        // ldmatrix: lanes 0-7 point to the rows of the first 8 x 8, lanes 8-15 of the second, ..
        const int row = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < k_tile<bfloat16>; k += 16) {
            uint32_t a[4][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // the second is 8 below in m, the third 8 further in k
                const int m = m0 + 16 * i + second;
                load_matrix<!left_by_k>(a[i], left_by_k ? left + (m + row) * Lies::left_pitch + k + third
                                                        : left + (k + third + row) * Lies::left_pitch + m);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {  // the second is 8 further in k, the third 8 further in n
                const int n = n0 + 16 * j + third;
                load_matrix<!right_by_k>(b[j], right_by_k ? right + (n + row) * Lies::right_pitch + k + second
                                                          : right + (k + second + row) * Lies::right_pitch + n);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma_bf16(sum[i][j], a[i], pair, sum[i][j]);
                }
        }
    }

    __device__ __forceinline__ void put(float* sums) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float* to = sums + (m0 + 16 * i + lane / 4) * sum_pitch + n0 + 8 * j + lane % 4 * 2;
                store_vector(to, make_float2(sum[i][j][0], sum[i][j][1]));
                store_vector(to + 8 * sum_pitch, make_float2(sum[i][j][2], sum[i][j][3]));
            }
    }
};

// Registers: 16 x 8 threads make 8 x 8 sums each, from four k at a time.
template <bool left_by_k, bool right_by_k>
struct Product<float, left_by_k, right_by_k> {
    using Lies = Tiles<float, left_by_k, right_by_k>;
    float sum[8][8] = {};
    int down = int(threadIdx.x) / 8, along = int(threadIdx.x) % 8;

    // Which row or column of the tile is the i-th of thread t out of `count`. Every access brings four floats: of four k
    // in a tile by k, where neighbouring threads then take neighbouring rows to meet different banks, else of four places.
    template <bool by_k>
    static __device__ __forceinline__ int place(int t, int count, int i) {
        return by_k ? i * count + t : i / 4 * 4 * count + 4 * t + i % 4;
    }
    // v[q][i] = element k + q of the i-th place
    template <bool by_k, int tile_pitch>
    static __device__ __forceinline__ void read(float (&v)[4][8], const float* tile, int k, int t, int count) {
#pragma unroll
        for (int i = 0; i < 8; i += by_k ? 1 : 4)
#pragma unroll
            for (int q = 0; q < 4; q += by_k ? 4 : 1) {
                const int at = place<by_k>(t, count, i);
                const float4 f = load_vector<float4>(tile + (by_k ? at * tile_pitch + k : (k + q) * tile_pitch + at));
                if constexpr (by_k)
                    v[0][i] = f.x, v[1][i] = f.y, v[2][i] = f.z, v[3][i] = f.w;
                else
                    v[q][i] = f.x, v[q][i + 1] = f.y, v[q][i + 2] = f.z, v[q][i + 3] = f.w;
            }
    }

    __device__ __forceinline__ void add(const float* left, const float* right) {
#pragma unroll 1
        for (int k = 0; k < k_tile<float>; k += 4) {
            float a[4][8], b[4][8];
            read<left_by_k, Lies::left_pitch>(a, left, k, down, 16);
            read<right_by_k, Lies::right_pitch>(b, right, k, along, 8);
#pragma unroll
            for (int q = 0; q < 4; ++q)
#pragma unroll
                for (int i = 0; i < 8; ++i)
#pragma unroll
                    for (int j = 0; j < 8; ++j) sum[i][j] += a[q][i] * b[q][j];
        }
    }

    __device__ __forceinline__ void put(float* sums) const {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                sums[place<left_by_k>(down, 16, i) * sum_pitch + place<right_by_k>(along, 8, j)] = sum[i][j];
    }
};

// The block's tile of the product, sums[m][n] in shared memory with rows sum_pitch apart, seen by all threads. load(left,
// right) starts the copies of the next step; look(right) may read a tile that has come.
template <class T, bool left_by_k, bool right_by_k, class Load, class Look>
__device__ __forceinline__ float* multiply(int64_t steps, unsigned char* memory, Load load, Look look) {
    using Lies = Tiles<T, left_by_k, right_by_k>;
    T* tiles = reinterpret_cast<T*>(memory);
    const auto start = [&](int64_t step, int stage) {
        if (step < steps) load(tiles + stage * Lies::stage_size, tiles + stage * Lies::stage_size + Lies::left_size);
        commit_copies();  // a group a step, also when it is empty, so that counting them is waiting for a step
    };
    Product<T, left_by_k, right_by_k> product;
#pragma unroll 1
    for (int step = 0; step < stages - 1; ++step) start(step, step);
    int stage = 0;
    for (int64_t step = 0; step < steps; ++step) {
        wait_copies<stages - 2>();
        __syncthreads();  // all copies of this step are here, and everyone is done with the tiles of the step before
        start(step + stages - 1, (stage + stages - 1) % stages);
        const T* left = tiles + stage * Lies::stage_size;
        look(left + Lies::left_size);
        product.add(left, left + Lies::left_size);
        stage = (stage + 1) % stages;
    }
    float* sums = reinterpret_cast<float*>(memory);
    __syncthreads();
    product.put(sums);
    __syncthreads();
    return sums;
}

// write(m, n, sums of n .. n + 7) for all of the tile; n is the same in all calls of a thread.
template <class Write>
__device__ __forceinline__ void for_each_row(const float* sums, Write write) {
    const int n = int(threadIdx.x) % 8 * 8;
#pragma unroll 2
    for (int m = int(threadIdx.x) / 8; m < m_tile; m += threads / 8) {
        float row[8];
        load(row, sums + m * sum_pitch + n);
        write(m, n, row);
    }
}

// A place (outer, middle, inner) in a box of any number x middles x inners, walked in the order of memory.
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
    int64_t classes_w, m_tiles, n_tiles;  // blocks: (classes of rows, classes of columns, m_tiles, n_tiles)
    bool source_vectors, w_vectors, made_vectors;  // whether these may be moved 16 bytes at a time
};

// One axis of it. Forward, y[i] sees x[i stride - pad + a]. Backward, x[p] sees dy[i] by tap a if i stride + a - pad = p
// (1); for the class of pixels p = r + stride p', these are the taps a = (r + pad) mod stride + stride a', and
// i = p' + (r + pad) div stride - a'. So dx is stride interleaved pictures, each made by a convolution of stride 1.
struct Axis {
    // Pixel r + every i', i' < pixels, sees source pixels i' scale + from + (forward) or - (backward) a' by the taps
    // first + every a', a' < taps.
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

    const int64_t m_block = blockIdx.x / g.n_tiles, kind = m_block / g.m_tiles;
    const int64_t m0 = m_block % g.m_tiles * m_tile, n0 = blockIdx.x % g.n_tiles * n_tile;
    const int64_t r = kind / g.classes_w, q = kind % g.classes_w;
    const Axis down = axis<backward>(g.made.h, s.kh, s.stride_h, s.pad_top, r);
    const Axis along = axis<backward>(g.made.w, s.kw, s.stride_w, s.pad_left, q);
    if (m0 >= s.n * down.pixels * along.pixels) return;

    int64_t mine = -1;  // element of `made` where row threadIdx.x of the tile begins
    static_assert(threads == m_tile, "a thread prepares a row");
    {
        const int64_t m = m0 + threadIdx.x, n = m / along.pixels / down.pixels;
        const int64_t i = m / along.pixels % down.pixels, j = m % along.pixels;
        const int64_t row = i * down.scale + down.from, column = j * along.scale + along.from;
        Pixel pixel = {0, 1u << 31, 1u << 31};  // outside, for every tap
        if (n < s.n) {
            pixel = {((n * g.source.h + row) * g.source.w + column) * channels, unsigned(row), unsigned(column)};
            mine = ((n * g.made.h + r + i * down.every) * g.made.w + q + j * along.every) * width;
        }
        pixels[threadIdx.x] = pixel;
    }
    __syncthreads();

    // k counts (a', b', channel); a thread's copies of one step all have the same one.
    Walk at(column<T, k_tile<T>>(g.source_vectors), along.taps, channels);
    const int64_t depth = down.taps * along.taps * channels;
    int64_t k = 0;
    const auto load = [&](T* left, T* right) {
        const int64_t a = at.outer, b = at.middle, c = at.inner;
        const bool inside = a < down.taps;
        const int64_t ahead = sign * (a * g.source.w + b) * channels + c;
        copy_tile<m_tile, k_tile<T>>(left, source, g.source_vectors, [&](int m) -> const T* {
            const Pixel p = pixels[m];
            const bool seen = inside && p.row + unsigned(sign * a) < g.source.h && p.column + unsigned(sign * b) < g.source.w;
            return seen ? source + p.at + ahead : nullptr;
        });
        if constexpr (backward) {  // w (kh, kw, cin, cout): n is cin, c of cout
            const int64_t tap = (down.first + a * down.every) * s.kw + along.first + b * along.every;
            copy_tile<n_tile, k_tile<T>>(right, w, g.w_vectors, [&](int n) -> const T* {
                return inside && n0 + n < width ? w + (tap * width + n0 + n) * channels + c : nullptr;
            });
        } else {  // a matrix (k, cout)
            const int64_t n = n0 + column<T, n_tile>(g.w_vectors);
            copy_tile<k_tile<T>, n_tile>(right, w, g.w_vectors, [&](int row) -> const T* {
                return k + row < depth && n < width ? w + (k + row) * width + n : nullptr;
            });
            k += k_tile<T>;
        }
        at.advance(k_tile<T>);
    };
    const float* sums =
        multiply<T, true, backward>(ceil_div(depth, k_tile<T>), memory, load, [](const T*) {});

    int64_t* begins = reinterpret_cast<int64_t*>(memory + sum_bytes);
    begins[threadIdx.x] = mine;
    __syncthreads();
    const int64_t n = n0 + threadIdx.x % 8 * 8;
    if (n >= width) return;
    float shift[8] = {};
    if (bias) load_upto(shift, bias + n, width - n, false);
    for_each_row(sums, [&](int m, int, float (&sum)[8]) {
        if (begins[m] < 0) return;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += shift[i];
        store_upto(made + begins[m] + n, sum, width - n, g.made_vectors);
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
    if (backward) g.source_vectors = g.w_vectors = g.source_vectors && g.w_vectors;  // their k are walked together
    const int64_t blocks = std::min(sh, g.made.h) * g.classes_w * g.m_tiles * g.n_tiles;
    if (blocks == 0) return;
    launch<conv2d_kernel<T, backward>>(dim3(unsigned(blocks)), dim3(threads), Tiles<T, true, backward>::bytes, stream, g,
                                       source, w, bias, made);
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

// dw (kh kw cin, cout) and dbias of one part of the pixels, of which there is one a row of the grid; the next part's
// results lie `apart` floats behind.
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
            const unsigned p = pixel.middle * unsigned(s.stride_h) + down, q = pixel.inner * unsigned(s.stride_w) + along;
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
    // The blocks of the first rows also sum dy's columns, of which a thread takes every other row.
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
__global__ void sum_parts_kernel(int64_t parts, int64_t size, int64_t cout, const float* __restrict__ partial,
                                 float* __restrict__ dw, float* __restrict__ dbias) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size + cout || (e >= size && !dbias)) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * (size + cout) + e];
    *(e < size ? dw + e : dbias + e - size) = sum;
}

constexpr int flat_threads = 256;
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
    template void conv2d_backward_weight<T>(const Conv2dShape&, const T*, const T*, float*, float*, void*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
