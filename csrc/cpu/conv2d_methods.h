// The four ways to compute conv2d, and what they share; conv2d.cpp chooses between them.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace pydiff {

using Addends = Conv2dAddends<float>;

// Whether 3 x 3 kernels may go by Winograd's algorithm, which is faster and rounds more (docs/winograd.md); true at first.
void use_winograd(bool on);

// Any kernel, stride and padding; no upsampling (up is 1).
void direct_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y);
void direct_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx);
void direct_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw,
                            float* dbias /* (cout) or null */);

// 1 x 1 kernels that meet every pixel once, with one bias for all samples: linear layers.
void pointwise_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y);
void pointwise_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx);
void pointwise_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw,
                               float* dbias /* (cout) or null */);

// Few channels of the output. The input gradient is for stride 1 and takes the mirrored shape, see below.
bool narrow_output_suits(const Conv2dShape& s);
void narrow_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y);
void narrow_backward_input(const Conv2dShape& mirrored, const float* dy, const float* w, float* dx);

// 3 x 3 kernels with stride 1. `suits` says whether it can be used and pays; it depends on the shape of one image and
// on the channels, never on the batch, so that an image's result does not either.
bool winograd_suits(const Conv2dShape& s);
void winograd_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y);
void winograd_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw);

// The input gradient for stride 1 is a forward pass over dy, of shape mirrored(s), with the weights' taps turned round
// and their channels exchanged. winograd_backward_input takes the mirrored shape; with `down` 2 it adds up 2 x 2 pixels
// to one of dx.
inline Conv2dShape mirrored(const Conv2dShape& s) {
    Conv2dShape m{s.n, s.oh, s.ow, s.cout, s.kh, s.kw, s.cin, s.h, s.w, s.stride_h, s.stride_w, 0, 0};
    m.pad_top = s.kh - 1 - s.pad_top;
    m.pad_left = s.kw - 1 - s.pad_left;
    return m;
}
void winograd_backward_input(const Conv2dShape& mirrored, int64_t down, const float* dy, const float* w, float* dx);

// Whether the matrix of patches is x itself, pixel by pixel.
inline bool pointwise(const Conv2dShape& s) {
    return s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_top == 0 && s.pad_left == 0 &&
           s.oh == s.h && s.ow == s.w;
}

// What output pixels (i, j) .. (i + rows - 1, j + columns - 1) of one image x see of it: lines of `pitch` floats, one
// after the other, from the line and column that tap (0, 0) of pixel (i, j) meets. Where the image ends, a copy with
// zeros in `copy` (seen_floats of them), and otherwise the image itself.
struct Seen {
    const float* first;
    int64_t pitch;
};
int64_t seen_floats(const Conv2dShape& s, int64_t rows, int64_t columns);
Seen see(const Conv2dShape& s, const float* x, int64_t i, int64_t rows, int64_t j, int64_t columns, float* copy);

// dw's sums are cut into blocks of pixels, and these into parts that may be added up at the same time, each in memory of
// its own. The blocks of a part, of `least` pixels or more; by shapes only, on which the order of summation depends.
inline int64_t blocks_of_a_part(const Conv2dShape& s, int64_t blocks, int64_t block_pixels, int64_t least) {
    constexpr int64_t most = 32, all_floats = int64_t{1} << 21;  // parts; of the sums of all
    const int64_t size = std::max<int64_t>(1, s.kh * s.kw * s.cin * s.cout);
    const int64_t parts = std::clamp<int64_t>(all_floats / size, 1, most);
    return std::max((blocks + parts - 1) / parts, (least + block_pixels - 1) / block_pixels);
}

// out[0, e] = sum over parts of out[part, e], in their order, for e < count; `size` floats from one part to the next.
inline void sum_parts(int64_t parts, int64_t size, int64_t count, float* out) {
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t e = 0; e < count; ++e) out[e] += out[part * size + e];
}

}  // namespace pydiff
