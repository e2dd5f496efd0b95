// conv2d with few output channels: the last layer of a U-Net, which makes an image, and the gradient of an image.
//
// They are narrower than a vector: in a matrix product most of every register would be empty. So a vector runs along
// the *input* channels, and the outputs of a few neighbouring pixels stay in registers,
//
//   sum[r, o] += x[pixel r, tap, c .. c + simd_width) w[tap, o, c .. c + simd_width)        one vector for each (r, o)
//   y[r, o]    = bias[o] + the sum of sum[r, o]'s elements
//
// Order of summation: y takes taps, blocks of channels, then a vector's elements by halves.
#include <algorithm>
#include <cstring>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

constexpr int64_t most_outputs = 4;
constexpr int tile_pixels = simd_registers == 32 ? 6 : 3;  // tile_pixels x most_outputs sums, and what they are made of
constexpr int64_t block_pixels = 128;                  // what they see stays in the L2 cache

enum Slot { seen_slot, weight_slot };

template <int n>
inline float sum_of_elements(const float* v) {
    if constexpr (n == 1) {
        return *v;
    } else {
        typedef float half __attribute__((vector_size(2 * n)));
        half low, high;
        std::memcpy(&low, v, sizeof low);
        std::memcpy(&high, v + n / 2, sizeof high);
        low += high;
        float sums[n / 2];
        std::memcpy(sums, &low, sizeof low);
        return sum_of_elements<n / 2>(sums);
    }
}

// sum[r][o] += x[r step .. + simd_width) w[o pitch ..), or of the first `count` elements of x only.
template <bool whole, int outputs>
inline void add_products(vfloat (&sum)[tile_pixels][outputs], const float* x, int64_t step, const float* w,
                         int64_t pitch, int64_t count) {
    vfloat wo[outputs];
#pragma GCC unroll 4
    for (int o = 0; o < outputs; ++o) wo[o] = load(w + o * pitch);
#pragma GCC unroll 6
    for (int r = 0; r < tile_pixels; ++r) {
        const vfloat xr = whole ? load(x + r * step) : load_partial(x + r * step, count);
#pragma GCC unroll 4
        for (int o = 0; o < outputs; ++o) sum[r][o] = multiply_add(xr, wo[o], sum[r][o]);
    }
}

// The outputs of `count` <= tile_pixels pixels of one line; x is read for tile_pixels. w (taps, outputs, pitch).
template <int outputs>
void tile(const Conv2dShape& s, const float* x, int64_t x_pitch, const float* w, int64_t pitch, const float* bias,
          int64_t count, float* y) {
    vfloat sum[tile_pixels][outputs] = {};
    const int64_t step = s.stride_w * s.cin, last = s.cin / simd_width * simd_width;
    for (int64_t a = 0; a < s.kh; ++a) {
        for (int64_t b = 0; b < s.kw; ++b, w += outputs * pitch) {
            const float* const xb = x + a * x_pitch + b * s.cin;
            for (int64_t c = 0; c < last; c += simd_width) add_products<true>(sum, xb + c, step, w + c, pitch, 0);
            if (last < s.cin) add_products<false>(sum, xb + last, step, w + last, pitch, s.cin - last);
        }
    }
    float elements[tile_pixels][outputs][simd_width];
#pragma GCC unroll 6
    for (int r = 0; r < tile_pixels; ++r)
#pragma GCC unroll 4
        for (int o = 0; o < outputs; ++o) store(elements[r][o], sum[r][o]);
    for (int64_t r = 0; r < count; ++r)
        for (int o = 0; o < outputs; ++o)
            y[r * outputs + o] = sum_of_elements<simd_width>(elements[r][o]) + (bias ? bias[o] : 0.0f);
}

using Tile = void (*)(const Conv2dShape&, const float*, int64_t, const float*, int64_t, const float*, int64_t, float*);

// The equation of conv2d.cpp. weight(tap, o, c) is the factor for output o.
template <class Weight>
void correlate(const Conv2dShape& s, const float* x, const Weight& weight, const float* bias, float* y) {
    if (s.n * s.oh * s.ow == 0) return;  // no columns would see a negative number of pixels
    static_assert(most_outputs == 4, "one entry for each number of outputs");
    constexpr Tile tiles[most_outputs] = {tile<1>, tile<2>, tile<3>, tile<4>};
    const Tile make = tiles[s.cout - 1];
    const int64_t pitch = panel_width(s.cin), taps = s.kh * s.kw;
    float* const w = scratch(weight_slot, static_cast<size_t>(taps * s.cout * pitch));
    std::fill(w, w + taps * s.cout * pitch, 0.0f);
    for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t o = 0; o < s.cout; ++o)
            for (int64_t c = 0; c < s.cin; ++c) w[(tap * s.cout + o) * pitch + c] = weight(tap, o, c);
    const int64_t columns = ceil_div(s.ow, tile_pixels) * tile_pixels;  // whole tiles: the last may see beyond the line
    const int64_t lines = std::max<int64_t>(1, block_pixels / std::max<int64_t>(columns, 1)), down = ceil_div(s.oh, lines);
    parallel_for(s.n * down, 1, [&](int64_t item) {
        const int64_t n = item / down, i0 = item % down * lines, rows = std::min(lines, s.oh - i0);
        const Seen seen = see(s, x + n * s.h * s.w * s.cin, i0, rows, 0, columns,
                              scratch(seen_slot, static_cast<size_t>(seen_floats(s, rows, columns))));
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < s.ow; j += tile_pixels)
                make(s, seen.first + r * s.stride_h * seen.pitch + j * s.stride_w * s.cin, seen.pitch, w, pitch, bias,
                     std::min<int64_t>(tile_pixels, s.ow - j), y + ((n * s.oh + i0 + r) * s.ow + j) * s.cout);
    });
}

}  // namespace

bool narrow_output_suits(const Conv2dShape& s) { return s.cout >= 1 && s.cout <= most_outputs && s.cin >= 16; }

void narrow_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y) {
    correlate(s, x, [&](int64_t tap, int64_t o, int64_t c) { return w[(tap * s.cin + c) * s.cout + o]; }, bias, y);
}

void narrow_backward_input(const Conv2dShape& mirrored, const float* dy, const float* w, float* dx) {
    const Conv2dShape& s = mirrored;  // the taps in the other direction, from w (kh, kw, s.cout, s.cin)
    const int64_t last = s.kh * s.kw - 1;
    correlate(s, dy, [&](int64_t tap, int64_t o, int64_t c) { return w[((last - tap) * s.cout + o) * s.cin + c]; },
              nullptr, dx);
}

}  // namespace pydiff
