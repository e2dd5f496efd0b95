// conv2d: cross-correlation over channels-last pictures, and its two gradients.
//
//   y[n, i, j, o] = bias[o] + sum_{a, b, c} x[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] w[a, b, c, o]
//
// with x = 0 outside the picture. The gradients of a loss whose gradient with respect to y is dy:
//
//   (1)  dx[n, p, q, c] = sum of dy[n, i, j, o] w[a, b, c, o] over o and all (i, a) with i stride_h + a - pad_top = p,
//                         (j, b) with j stride_w + b - pad_left = q
//   (2)  dw[a, b, c, o] = sum_{n, i, j} x[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] dy[n, i, j, o]
//   (3)  dbias[o]       = sum_{n, i, j} dy[n, i, j, o]
//
// A linear layer is the case of a 1 x 1 kernel. Three ways lead there: conv2d_direct.cpp takes any shape, conv2d_winograd.cpp
// the 3 x 3 kernels of a U-Net, faster, conv2d_narrow.cpp few output channels. In all of them a picture's y and dx are
// the same alone and in any batch, and no bit of any result depends on the number of threads.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

std::atomic<bool> winograd_allowed{true};

bool by_winograd(const Conv2dShape& s) { return winograd_allowed && winograd_suits(s); }

// dbias (cout) = sum over pixels of dy (pixels, cout)
void backward_bias(int64_t pixels, int64_t cout, const float* dy, float* dbias) {
    constexpr int64_t most_parts = 32;
    const int64_t part = std::max<int64_t>(512, ceil_div(pixels, most_parts)), parts = ceil_div(pixels, part);
    float* partial = scratch(0, static_cast<size_t>(parts * cout));
    parallel_for(parts, 1, [&](int64_t item) {
        float* sum = partial + item * cout;
        std::fill(sum, sum + cout, 0.0f);
        for (int64_t p = item * part; p < std::min((item + 1) * part, pixels); ++p)
            for (int64_t o = 0; o < cout; ++o) sum[o] += dy[p * cout + o];
    });
    sum_parts(parts, cout, cout, partial);
    std::copy(partial, partial + cout, dbias);
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

void conv2d_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y) {
    (by_winograd(s) ? winograd_forward : narrow_output_suits(s) ? narrow_forward : direct_forward)(s, x, w, bias, y);
}

void conv2d_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {  // (1)
    if (by_winograd(mirrored(s)))
        winograd_backward_input(mirrored(s), dy, w, dx);
    else if (s.stride_h == 1 && s.stride_w == 1 && narrow_output_suits(mirrored(s)))
        narrow_backward_input(mirrored(s), dy, w, dx);
    else
        direct_backward_input(s, dy, w, dx);
}

void conv2d_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw, float* dbias) {
    const int64_t pixels = s.n * s.oh * s.ow;
    if (pixels == 0) {
        std::fill(dw, dw + s.kh * s.kw * s.cin * s.cout, 0.0f);
        if (dbias) std::fill(dbias, dbias + s.cout, 0.0f);
        return;
    }
    if (!by_winograd(s)) return direct_backward_weight(s, dy, x, dw, dbias);  // (2), (3)
    winograd_backward_weight(s, dy, x, dw);
    if (dbias) backward_bias(pixels, s.cout, dy, dbias);
}

}  // namespace pydiff
