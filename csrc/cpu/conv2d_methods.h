// The two ways to compute conv2d, and what they share; conv2d.cpp chooses between them.
#pragma once
#include "kernels.h"

namespace pydiff {

// Any kernel, stride and padding.
void direct_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y);
void direct_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx);
void direct_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw);

// 3 x 3 kernels with stride 1. `suits` says whether it can be used and pays; it depends on the shape of one picture and
// on the channels, never on the batch, so that a picture's result does not either.
bool winograd_suits(const Conv2dShape& s);
void winograd_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y);
void winograd_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw);

// The input gradient for stride 1 is a forward pass over dy, of shape mirrored(s), with the weights' taps turned round
// and their channels exchanged. winograd_backward_input takes the mirrored shape.
inline Conv2dShape mirrored(const Conv2dShape& s) {
    Conv2dShape m{s.n, s.oh, s.ow, s.cout, s.kh, s.kw, s.cin, s.h, s.w, s.stride_h, s.stride_w, 0, 0};
    m.pad_top = s.kh - 1 - s.pad_top;
    m.pad_left = s.kw - 1 - s.pad_left;
    return m;
}
void winograd_backward_input(const Conv2dShape& mirrored, const float* dy, const float* w, float* dx);

// out[0, e] = sum over parts of out[part, e], in their order, for e < count; `size` floats from one part to the next.
inline void sum_parts(int64_t parts, int64_t size, int64_t count, float* out) {
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t e = 0; e < count; ++e) out[e] += out[part * size + e];
}

}  // namespace pydiff
