// The transforms of Winograd's F(4 x 4, 3 x 3): a 4 x 4 tile of a 3 x 3 correlation with 36 products instead of 144
// (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin, S. Gray, "Fast Algorithms for Convolutional
// Neural Networks", CVPR 2016, equation 8):
//
//   y = A^T [ (G g G^T) * (B^T d B) ] A          d (6, 6) input, g (3, 3) weights, y (4, 4) output, * elementwise
//
// It is the product of two polynomials, given by its values at the points 0, a, -a, b, -b and infinity:
//
//        | 1/(a^2 b^2)    0         0        |      Na = 1 / (2 a^2 (a^2 - b^2))
//        | Na             Na a      Na a^2   |      Nb = 1 / (2 b^2 (b^2 - a^2))
//   G =  | Na            -Na a      Na a^2   |
//        | Nb             Nb b      Nb b^2   |            | 1   1    1    1    1   0 |
//        | Nb            -Nb b      Nb b^2   |      A^T = | 0   a   -a    b   -b   0 |
//        | 0              0         1        |            | 0  a^2  a^2  b^2  b^2  0 |
//                                                         | 0  a^3 -a^3  b^3 -b^3  1 |
//        | a^2 b^2   0        -(a^2+b^2)   0          1   0 |
//        | 0        -a b^2    -b^2         a          1   0 |
//   B^T =| 0         a b^2    -b^2        -a          1   0 |
//        | 0        -a^2 b    -a^2         b          1   0 |
//        | 0         a^2 b    -a^2        -b          1   0 |
//        | 0         a^2 b^2   0         -(a^2+b^2)   0   1 |
//
// The usual points are a = 1, b = 2. With a = 5/8, b = 3/2 the rounding error in float32 is 2.2 times smaller (rms,
// random data, forward and weight gradient alike), and A and B^T are still exact.
//
// The gradients are the adjoints: of y, A dy A^T (4 -> 6); of g, G^T u G (6 -> 3). Each function is one dimension.
#pragma once
#include <algorithm>

#include "gemm.h"
#include "kernels.h"

namespace pydiff {
namespace winograd {

constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
constexpr float Na = static_cast<float>(1.0 / (2.0 * a2 * (double{a2} - b2)));
constexpr float Nb = static_cast<float>(1.0 / (2.0 * b2 * (double{b2} - a2)));
constexpr float N0 = static_cast<float>(1.0 / (double{a2} * b2));

inline vfloat multiply_add(float x, vfloat y, vfloat z) { return pydiff::multiply_add(broadcast(x), y, z); }

struct Input {  // v = B^T d
    static constexpr int in = 6, out = 6;
    static void apply(const vfloat* d, vfloat* v) {
        const vfloat even_a = multiply_add(-b2, d[2], d[4]), odd_a = a * multiply_add(-b2, d[1], d[3]);
        const vfloat even_b = multiply_add(-a2, d[2], d[4]), odd_b = b * multiply_add(-a2, d[1], d[3]);
        v[0] = multiply_add(a2 * b2, d[0], multiply_add(-(a2 + b2), d[2], d[4]));
        v[1] = even_a + odd_a;
        v[2] = even_a - odd_a;
        v[3] = even_b + odd_b;
        v[4] = even_b - odd_b;
        v[5] = multiply_add(a2 * b2, d[1], multiply_add(-(a2 + b2), d[3], d[5]));
    }
};

struct Weight {  // u = G g
    static constexpr int in = 3, out = 6;
    static void apply(const vfloat* g, vfloat* u) {
        const vfloat even_a = Na * multiply_add(a2, g[2], g[0]), odd_a = (Na * a) * g[1];
        const vfloat even_b = Nb * multiply_add(b2, g[2], g[0]), odd_b = (Nb * b) * g[1];
        u[0] = N0 * g[0];
        u[1] = even_a + odd_a;
        u[2] = even_a - odd_a;
        u[3] = even_b + odd_b;
        u[4] = even_b - odd_b;
        u[5] = g[2];
    }
};

struct Output {  // y = A^T m
    static constexpr int in = 6, out = 4;
    static void apply(const vfloat* m, vfloat* y) {
        const vfloat even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
        y[0] = m[0] + (even_a + even_b);
        y[1] = multiply_add(b, odd_b, a * odd_a);
        y[2] = multiply_add(b2, even_b, a2 * even_a);
        y[3] = multiply_add(b * b2, odd_b, multiply_add(a * a2, odd_a, m[5]));
    }
};

struct OutputAdjoint {  // w = A dy
    static constexpr int in = 4, out = 6;
    static void apply(const vfloat* y, vfloat* w) {
        const vfloat even_a = multiply_add(a2, y[2], y[0]), odd_a = a * multiply_add(a2, y[3], y[1]);
        const vfloat even_b = multiply_add(b2, y[2], y[0]), odd_b = b * multiply_add(b2, y[3], y[1]);
        w[0] = y[0];
        w[1] = even_a + odd_a;
        w[2] = even_a - odd_a;
        w[3] = even_b + odd_b;
        w[4] = even_b - odd_b;
        w[5] = y[3];
    }
};

struct WeightAdjoint {  // dg = G^T u
    static constexpr int in = 6, out = 3;
    static void apply(const vfloat* u, vfloat* g) {
        const vfloat even_a = Na * (u[1] + u[2]), odd_a = (Na * a) * (u[1] - u[2]);
        const vfloat even_b = Nb * (u[3] + u[4]), odd_b = (Nb * b) * (u[3] - u[4]);
        g[0] = multiply_add(N0, u[0], even_a + even_b);
        g[1] = odd_a + odd_b;
        g[2] = multiply_add(b2, even_b, multiply_add(a2, even_a, u[5]));
    }
};

// Both dimensions: x (in, in) to y (out, out), the columns first. Of a `row` other than -1, only that row of y: (out).
template <class T, int row = -1>
inline void transform(const vfloat* x, vfloat* y) {
    vfloat columns[T::in][T::out];
#pragma GCC unroll 8
    for (int j = 0; j < T::in; ++j) {
        vfloat column[T::in];
#pragma GCC unroll 8
        for (int i = 0; i < T::in; ++i) column[i] = x[i * T::in + j];
        T::apply(column, columns[j]);
    }
#pragma GCC unroll 8
    for (int i = row < 0 ? 0 : row; i < (row < 0 ? T::out : row + 1); ++i) {
        vfloat line[T::in];
#pragma GCC unroll 8
        for (int j = 0; j < T::in; ++j) line[j] = columns[j][i];
        T::apply(line, y + (row < 0 ? i * T::out : 0));
    }
}

// The tiles of all pictures' outputs, 4 x 4 pixels each (the last of a row or column may stand over the edge).
struct Tiles {
    int64_t rows, columns, count;
    explicit Tiles(const Conv2dShape& s)
        : rows(ceil_div(s.oh, 4)), columns(ceil_div(s.ow, 4)), count(s.n * rows * columns) {}
};

// Pictures (n, height, width, channels), and where tile (0, 0) has its window. The data are (n, height / up, width / up,
// channels): of pictures whose pixels are repeated up x up times, one of each.
struct Pictures {
    const float* data;
    int64_t height, width, channels, top, left, up;
};

// One matrix (tiles, channels) for each point: its planes lie `plane` floats apart, its rows `pitch`.
struct Planes {
    // So much between planes keeps the points of one tile out of each other's cache sets.
    static constexpr int64_t gap = 16;
    float* data;
    int64_t plane, pitch;
    Planes(float* memory, int64_t tiles, int64_t width) : data(memory), plane(tiles * width + gap), pitch(width) {}
    static size_t size(int64_t points, int64_t tiles, int64_t width) {
        return static_cast<size_t>(points * (tiles * width + gap));
    }
    float* at(int64_t point, int64_t tile) const { return data + point * plane + tile * pitch; }
};

// Where the pixels of a tile's window lie; those outside the picture are `zero`.
template <int size>
inline void locate(const Pictures& x, const Tiles& tiles, int64_t tile, const float* zero, const float** pixels) {
    const int64_t n = tile / tiles.columns / tiles.rows;
    const int shift = x.up == 2;
    const int64_t height = x.height >> shift, width = x.width >> shift;
    const int64_t top = x.top + 4 * (tile / tiles.columns % tiles.rows), left = x.left + 4 * (tile % tiles.columns);
    for (int64_t i = top; i < top + size; ++i)
        for (int64_t j = left; j < left + size; ++j) {
            const bool inside = i >= 0 && i < x.height && j >= 0 && j < x.width;
            *pixels++ = inside ? x.data + ((n * height + (i >> shift)) * width + (j >> shift)) * x.channels : zero;
        }
}

// The transform T of the windows of tiles [first, first + count), channels [c0, c0 + channels), into `out`; of a `row`
// other than -1, only the points of that row. `zero` is x.channels zeros.
template <class T, int row = -1>
void transform_windows(const Pictures& x, const Tiles& tiles, int64_t first, int64_t count, int64_t c0,
                       int64_t channels, const float* zero, const Planes& out) {
    constexpr int window = T::in * T::in, results = row < 0 ? T::out * T::out : T::out;
    const float* pixels[2][window];
    locate<T::in>(x, tiles, first, zero, pixels[0]);
    for (int64_t t = 0; t < count; ++t) {
        // The next window is fetched meanwhile: its pixels lie too far apart for the processor to guess them.
        const float **here = pixels[t % 2], **next = pixels[(t + 1) % 2];
        locate<T::in>(x, tiles, std::min(first + t + 1, tiles.count - 1), zero, next);
        for (int64_t c = 0; c < channels; c += simd_width) {
            vfloat d[window], v[results];
            for (int e = 0; e < window; ++e) {
                d[e] = load_upto(here[e] + c0 + c, channels - c);
                __builtin_prefetch(next[e] + c0 + c);
            }
            transform<T, row>(d, v);
            for (int e = 0; e < results; ++e) store(out.at(e, t) + c, v[e]);
        }
    }
}

}  // namespace winograd
}  // namespace pydiff
