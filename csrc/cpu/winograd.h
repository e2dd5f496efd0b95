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

// Results come in pairs, because those of the points p and -p share their sums, and because a pair of rows is what the
// registers hold: apply<pair> makes result(pair, 0) and result(pair, 1).
struct Input {  // v = B^T d
    static constexpr int in = 6, out = 6, pairs = 3;
    static constexpr int result(int pair, int half) { return pair == 0 ? 5 * half : 2 * pair - 1 + half; }
    template <int pair>
    static void apply(const vfloat* d, vfloat& v0, vfloat& v1) {
        if constexpr (pair == 0) {
            v0 = multiply_add(a2 * b2, d[0], multiply_add(-(a2 + b2), d[2], d[4]));
            v1 = multiply_add(a2 * b2, d[1], multiply_add(-(a2 + b2), d[3], d[5]));
        } else {
            constexpr float point = pair == 1 ? a : b, other2 = pair == 1 ? b2 : a2;
            const vfloat even = multiply_add(-other2, d[2], d[4]), odd = point * multiply_add(-other2, d[1], d[3]);
            v0 = even + odd;
            v1 = even - odd;
        }
    }
};

struct Weight {  // u = G g
    static constexpr int in = 3, out = 6, pairs = 3;
    static constexpr int result(int pair, int half) { return Input::result(pair, half); }
    template <int pair>
    static void apply(const vfloat* g, vfloat& u0, vfloat& u1) {
        if constexpr (pair == 0) {
            u0 = N0 * g[0];
            u1 = g[2];
        } else {
            constexpr float point = pair == 1 ? a : b, N = pair == 1 ? Na : Nb;
            const vfloat even = N * multiply_add(point * point, g[2], g[0]), odd = (N * point) * g[1];
            u0 = even + odd;
            u1 = even - odd;
        }
    }
};

struct Output {  // y = A^T m
    static constexpr int in = 6, out = 4, pairs = 2;
    static constexpr int result(int pair, int half) { return pair + 2 * half; }
    template <int pair>
    static void apply(const vfloat* m, vfloat& y0, vfloat& y1) {
        if constexpr (pair == 0) {
            const vfloat even_a = m[1] + m[2], even_b = m[3] + m[4];
            y0 = m[0] + (even_a + even_b);
            y1 = multiply_add(b2, even_b, a2 * even_a);
        } else {
            const vfloat odd_a = m[1] - m[2], odd_b = m[3] - m[4];
            y0 = multiply_add(b, odd_b, a * odd_a);
            y1 = multiply_add(b * b2, odd_b, multiply_add(a * a2, odd_a, m[5]));
        }
    }
};

struct OutputAdjoint {  // w = A dy
    static constexpr int in = 4, out = 6, pairs = 3;
    static constexpr int result(int pair, int half) { return Input::result(pair, half); }
    template <int pair>
    static void apply(const vfloat* y, vfloat& w0, vfloat& w1) {
        if constexpr (pair == 0) {
            w0 = y[0];
            w1 = y[3];
        } else {
            constexpr float point = pair == 1 ? a : b, point2 = point * point;
            const vfloat even = multiply_add(point2, y[2], y[0]), odd = point * multiply_add(point2, y[3], y[1]);
            w0 = even + odd;
            w1 = even - odd;
        }
    }
};

struct WeightAdjoint {  // dg = G^T u; g[1] alone makes the second pair
    static constexpr int in = 6, out = 3, pairs = 2;
    static constexpr int result(int pair, int half) { return pair == 0 ? 2 * half : 1; }
    template <int pair>
    static void apply(const vfloat* u, vfloat& g0, vfloat& g1) {
        if constexpr (pair == 0) {
            const vfloat even_a = Na * (u[1] + u[2]), even_b = Nb * (u[3] + u[4]);
            g0 = multiply_add(N0, u[0], even_a + even_b);
            g1 = multiply_add(b2, even_b, multiply_add(a2, even_a, u[5]));
        } else {
            g0 = g1 = (Na * a) * (u[1] - u[2]) + (Nb * b) * (u[3] - u[4]);
        }
    }
};

// All results of one dimension.
template <class T, int pair = 0>
inline void apply(const vfloat* x, vfloat* y) {
    if constexpr (pair < T::pairs) {
        T::template apply<pair>(x, y[T::result(pair, 0)], y[T::result(pair, 1)]);
        apply<T, pair + 1>(x, y);
    }
}

// Two rows of results in both dimensions: x = read(i, j), i, j < in, the columns first. write(half, j, y) takes
// y[result(pair, half), j].
template <class T, int pair, class Read, class Write>
inline void transform_rows(Read read, Write write) {
    vfloat rows[2][T::in];
#pragma GCC unroll 8
    for (int j = 0; j < T::in; ++j) {
        vfloat column[T::in];
#pragma GCC unroll 8
        for (int i = 0; i < T::in; ++i) column[i] = read(i, j);
        T::template apply<pair>(column, rows[0][j], rows[1][j]);
    }
    constexpr int halves = T::result(pair, 0) == T::result(pair, 1) ? 1 : 2;
#pragma GCC unroll 2
    for (int half = 0; half < halves; ++half) {
        vfloat line[T::out];
        apply<T>(rows[half], line);
#pragma GCC unroll 8
        for (int j = 0; j < T::out; ++j) write(half, j, line[j]);
    }
}

// All rows: write(i, j, y) takes y[i, j].
template <class T, int pair = 0, class Read, class Write>
inline void transform(Read read, Write write) {
    if constexpr (pair < T::pairs) {
        transform_rows<T, pair>(read, [&](int half, int j, vfloat y) { write(T::result(pair, half), j, y); });
        transform<T, pair + 1>(read, write);
    }
}

// The tiles of all images' outputs, 4 x 4 pixels each (the last of a row or column may stand over the edge).
struct Tiles {
    int64_t rows, columns, count;
    explicit Tiles(const Conv2dShape& s)
        : rows(ceil_div(s.oh, 4)), columns(ceil_div(s.ow, 4)), count(s.n * rows * columns) {}
};

// Images (n, height, width, channels), and where tile (0, 0) has its window. The data are (n, height / up, width / up,
// channels): of images in which every pixel stands up x up times, one each.
struct Images {
    const float* data;
    int64_t height, width, channels, top, left, up;

    // The line of data, counted over all images, that is `i` below the top of the tile's window: the nearest one inside.
    int64_t data_row(const Tiles& tiles, int64_t tile, int64_t i) const {
        const int64_t row = tile / tiles.columns, n = row / tiles.rows;
        return (n * height + std::clamp<int64_t>(top + 4 * (row % tiles.rows) + i, 0, height)) / up;
    }
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
    Planes from(int64_t tile) const {  // without the tiles before this one
        Planes rest = *this;
        rest.data += tile * pitch;
        return rest;
    }
};

// Where the pixels of a tile's window lie; those outside the image are `zero`.
template <int size>
inline void locate(const Images& x, const Tiles& tiles, int64_t tile, const float* zero, const float** pixels) {
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

// The transform T of the windows of tiles [first, first + count), channels [c0, c0 + channels), into `out`; of a `pair`
// other than -1, only the points of its two rows. `zero` is x.channels zeros.
template <class T, int pair = -1>
void transform_windows(const Images& x, const Tiles& tiles, int64_t first, int64_t count, int64_t c0,
                       int64_t channels, const float* zero, const Planes& out) {
    constexpr int window = T::in * T::in;
    const float* pixels[2][window];
    locate<T::in>(x, tiles, first, zero, pixels[0]);
    for (int64_t t = 0; t < count; ++t) {
        // The next window is fetched meanwhile: its pixels lie too far apart for the processor to guess them.
        const float **here = pixels[t % 2], **next = pixels[(t + 1) % 2];
        locate<T::in>(x, tiles, std::min(first + t + 1, tiles.count - 1), zero, next);
        for (int64_t c = 0; c < channels; c += simd_width) {
            for (int e = 0; e < window; ++e) __builtin_prefetch(next[e] + c0 + c);
            const auto part = [&](auto read) {
                const auto write = [&](int i, int j, vfloat v) { store(out.at(i * T::out + j, t) + c, v); };
                if constexpr (pair < 0)
                    transform<T>(read, write);
                else
                    transform_rows<T, pair>(read, write);
            };
            if (c + simd_width <= channels)
                part([&](int i, int j) { return load(here[i * T::in + j] + c0 + c); });
            else
                part([&](int i, int j) { return load_partial(here[i * T::in + j] + c0 + c, channels - c); });
        }
    }
}

// Fetches the lines of images that tiles [first, first + count) see, a few with every call of step(): between matrix
// products, so that they are there when the tiles' turn comes and memory does not idle until then.
class Fetch {
public:
    static constexpr int64_t line = 16;  // floats
    Fetch(const Images& x, const Tiles& tiles, int64_t first, int64_t count, int size, int64_t steps) {
        if (first >= tiles.count) return;
        const int64_t last = std::min(first + count, tiles.count) - 1;
        const int64_t begin = x.data_row(tiles, first, 0), end = x.data_row(tiles, last, size);
        at_ = x.data + begin * (x.width / x.up) * x.channels;
        end_ = x.data + end * (x.width / x.up) * x.channels;
        share_ = ceil_div(end_ - at_, steps * line) * line;
    }
    void step() {
        const float* until = std::min(at_ + share_, end_);
        for (; at_ < until; at_ += line) __builtin_prefetch(at_, 0, 2);
    }

private:
    const float *at_ = nullptr, *end_ = nullptr;
    int64_t share_ = 0;
};

}  // namespace winograd
}  // namespace pydiff
