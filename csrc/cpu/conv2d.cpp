// conv2d: cross-correlation over channels-last images, and its two gradients.
//
//   y[n, i, j, o] = sum_{a, b, c} X[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] w[a, b, c, o]
//                   + bias[o] + add[n, i, j, o]
//
// with X = 0 outside the image. X is x, or x with every pixel repeated up x up times: X[n, p, q] = x[n, p / up, q / up].
// The bias may be one for each sample, bias[n, o]: a U-Net adds its step embedding that way, and with `add` what a
// residual block passes by. The gradients of a loss whose gradient with respect to y is dy (that of `add` is dy itself):
//
//   (1)  dX[n, p, q, c] = sum of dy[n, i, j, o] w[a, b, c, o] over o and all (i, a) with i stride_h + a - pad_top = p,
//                         (j, b) with j stride_w + b - pad_left = q
//        dx[n, p, q, c] = sum of dX[n, up p + e, up q + f, c] over e, f < up
//   (2)  dw[a, b, c, o] = sum_{n, i, j} X[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] dy[n, i, j, o]
//   (3)  dbias[o]       = sum_{n, i, j} dy[n, i, j, o],   or dbias[n, o] = sum_{i, j}
//
// A linear layer is the case of a 1 x 1 kernel. Four ways lead there: conv2d_direct.cpp takes any shape,
// conv2d_winograd.cpp the 3 x 3 kernels of a U-Net, faster, conv2d_pointwise.cpp the 1 x 1 kernels of linear layers, and
// conv2d_narrow.cpp few output channels. In all of them an image's y and dx are
// the same alone and in any batch, and no bit of any result depends on the number of threads. Only Winograd's reads
// upsampled images without making them; for the others they are made here.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

std::atomic<bool> winograd_allowed{true};

bool by_winograd(const Conv2dShape& s) { return winograd_allowed && winograd_suits(s); }

// dbias (groups, cout) = sum over pixels of dy (groups, pixels, cout): the groups are samples, or all of them is one.
void backward_bias(int64_t groups, int64_t pixels, int64_t cout, const float* dy, float* dbias) {
    constexpr int64_t most_parts = 32;
    const int64_t part = std::max<int64_t>(512, ceil_div(pixels, most_parts)), parts = ceil_div(pixels, part);
    float* partial = scratch(0, static_cast<size_t>(groups * parts * cout));
    parallel_for(groups * parts, 1, [&](int64_t item) {
        const int64_t first = item % parts * part, count = std::min(part, pixels - first);
        const float* from = dy + (item / parts * pixels + first) * cout;
        float* sum = partial + item * cout;
        std::fill(sum, sum + cout, 0.0f);
        for (int64_t p = 0; p < count; ++p)
            for (int64_t o = 0; o < cout; ++o) sum[o] += from[p * cout + o];
    });
    for (int64_t group = 0; group < groups; ++group) {
        float* sums = partial + group * parts * cout;
        sum_parts(parts, cout, cout, sums);
        std::copy(sums, sums + cout, dbias + group * cout);
    }
}

// y (n, oh, ow, cout) += a bias for each sample and `add`: what conv2d_narrow.cpp leaves out.
void add_rest(const Conv2dShape& s, const Addends& addends, float* y) {
    const bool each = addends.bias && addends.bias_step;
    if (!each && !addends.add) return;
    const int64_t line = s.ow * s.cout;
    parallel_for(s.n * s.oh, 16384 / (line + 1) + 1, [&](int64_t item) {
        float* to = y + item * line;
        const float* bias = addends.bias + (each ? item / s.oh * addends.bias_step : 0);
        if (each)
            for (int64_t p = 0; p < line; p += s.cout)
                for (int64_t o = 0; o < s.cout; ++o) to[p + o] += bias[o];
        if (addends.add)
            for (int64_t e = 0; e < line; ++e) to[e] += addends.add[item * line + e];
    });
}

// y where there are no products: their taps may still be very many, in weights that take no memory.
void addends_alone(const Conv2dShape& s, const Addends& addends, float* y) {
    const float* const bias = addends.bias_step ? nullptr : addends.bias;
    for (int64_t e = 0; e < s.n * s.oh * s.ow * s.cout; ++e) y[e] = bias ? bias[e % s.cout] : 0.0f;
    add_rest(s, addends, y);
}

using Memory = std::unique_ptr<float[]>;
Memory memory(int64_t count) { return Memory(new float[static_cast<size_t>(count)]); }

// X (n, h, w, cin) of x (n, h / 2, w / 2, cin)
Memory upsampled(const Conv2dShape& s, const float* x) {
    Memory made = memory(s.n * s.h * s.w * s.cin);
    const int64_t line = s.w * s.cin;
    parallel_for(s.n * s.h / 2, 16384 / (2 * line + 1) + 1, [&](int64_t item) {
        float* to = made.get() + 2 * item * line;
        for (int64_t q = 0; q < s.w; ++q) std::copy_n(x + (item * (s.w / 2) + q / 2) * s.cin, s.cin, to + q * s.cin);
        std::copy_n(to, line, to + line);
    });
    return made;
}

// dx (n, h / 2, w / 2, cin) of dX (n, h, w, cin)
void sum_pixels(const Conv2dShape& s, const float* made, float* dx) {
    const int64_t line = s.w * s.cin;
    parallel_for(s.n * s.h / 2, 16384 / (2 * line + 1) + 1, [&](int64_t item) {
        const float *above = made + 2 * item * line, *below = above + line;
        float* to = dx + item * (line / 2);
        for (int64_t q = 0; q < s.w / 2; ++q, above += 2 * s.cin, below += 2 * s.cin, to += s.cin)
            for (int64_t c = 0; c < s.cin; ++c)
                to[c] = (above[c] + above[s.cin + c]) + (below[c] + below[s.cin + c]);
    });
}

Conv2dShape without_upsampling(Conv2dShape s) {
    s.up = 1;
    return s;
}

}  // namespace

int64_t seen_floats(const Conv2dShape& s, int64_t rows, int64_t columns) {
    return ((rows - 1) * s.stride_h + s.kh) * ((columns - 1) * s.stride_w + s.kw) * s.cin;
}

Seen see(const Conv2dShape& s, const float* x, int64_t i, int64_t rows, int64_t j, int64_t columns, float* copy) {
    const int64_t top = i * s.stride_h - s.pad_top, left = j * s.stride_w - s.pad_left;
    const int64_t lines = (rows - 1) * s.stride_h + s.kh, width = (columns - 1) * s.stride_w + s.kw;
    if (top >= 0 && top + lines <= s.h && left >= 0 && left + width <= s.w)
        return {x + (top * s.w + left) * s.cin, s.w * s.cin};
    float* to = copy;
    for (int64_t line = top; line < top + lines; ++line, to += width * s.cin) {
        const bool inside = line >= 0 && line < s.h;
        const int64_t lo = inside ? std::clamp<int64_t>(-left, 0, width) : width;
        const int64_t hi = inside ? std::clamp<int64_t>(s.w - left, lo, width) : width;
        std::fill(to, to + lo * s.cin, 0.0f);
        if (lo < hi) std::memcpy(to + lo * s.cin, x + (line * s.w + left + lo) * s.cin, sizeof(float) * (hi - lo) * s.cin);
        std::fill(to + hi * s.cin, to + width * s.cin, 0.0f);
    }
    return {copy, width * s.cin};
}

void use_winograd(bool on) { winograd_allowed = on; }

template <>
void conv2d_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y) {
    if (s.cin == 0) return addends_alone(s, addends, y);
    if (by_winograd(s)) return winograd_forward(s, x, w, addends, y);
    if (s.up == 2) return conv2d_forward(without_upsampling(s), upsampled(s, x).get(), w, addends, y);
    if (!narrow_output_suits(s))
        return pointwise(s) && !addends.bias_step ? pointwise_forward(s, x, w, addends, y)
                                                  : direct_forward(s, x, w, addends, y);
    narrow_forward(s, x, w, addends.bias_step ? nullptr : addends.bias, y);
    add_rest(s, addends, y);
}

template <>
void conv2d_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {  // (1)
    if (s.cout == 0) {
        std::fill(dx, dx + s.n * (s.h / s.up) * (s.w / s.up) * s.cin, 0.0f);
        return;
    }
    if (by_winograd(mirrored(s))) return winograd_backward_input(mirrored(s), s.up, dy, w, dx);
    if (s.up == 2) {
        const Memory made = memory(s.n * s.h * s.w * s.cin);
        conv2d_backward_input(without_upsampling(s), dy, w, made.get());
        return sum_pixels(s, made.get(), dx);
    }
    if (s.stride_h == 1 && s.stride_w == 1 && narrow_output_suits(mirrored(s)))
        narrow_backward_input(mirrored(s), dy, w, dx);
    else if (pointwise(s))
        pointwise_backward_input(s, dy, w, dx);
    else
        direct_backward_input(s, dy, w, dx);
}

template <>
void conv2d_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw, float* dbias,
                            int64_t dbias_step) {
    const int64_t pixels = s.oh * s.ow, groups = dbias_step ? s.n : 1;
    Memory made;
    if (s.n * pixels == 0) {
        std::fill(dw, dw + s.kh * s.kw * s.cin * s.cout, 0.0f);
        if (dbias) std::fill(dbias, dbias + groups * s.cout, 0.0f);
        return;
    }
    const bool empty = s.cin * s.cout == 0, winograd = by_winograd(s);
    if (winograd) {  // (2)
        winograd_backward_weight(s, dy, x, dw);
    } else if (!empty) {  // (2), (3)
        const float* const seen = s.up == 2 ? (made = upsampled(s, x)).get() : x;
        const auto way = pointwise(s) ? pointwise_backward_weight : direct_backward_weight;
        way(without_upsampling(s), dy, seen, dw, dbias_step ? nullptr : dbias);
    }
    if (dbias && (empty || winograd || dbias_step)) backward_bias(groups, s.n / groups * pixels, s.cout, dy, dbias);  // (3)
}

}  // namespace pydiff
