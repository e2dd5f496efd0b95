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
// A linear layer is the case of a 1 x 1 kernel. Two files do the work: conv2d_direct.cpp any shape, conv2d_winograd.cpp
// the 3 x 3 kernels of a U-Net, faster. In both a picture's y and dx are the same alone and in any batch, and no bit of
// any result depends on the number of threads.
#include <algorithm>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

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

void conv2d_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y) {
    (winograd_suits(s) ? winograd_forward : direct_forward)(s, x, w, bias, y);
}

void conv2d_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {  // (1)
    if (winograd_suits(mirrored(s)))
        winograd_backward_input(mirrored(s), dy, w, dx);
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
    (winograd_suits(s) ? winograd_backward_weight : direct_backward_weight)(s, dy, x, dw);  // (2)
    if (dbias) backward_bias(pixels, s.cout, dy, dbias);                                    // (3)
}

}  // namespace pydiff
