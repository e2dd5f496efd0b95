// GELU (Hendrycks and Gimpel 2016, section 2) and the gate made of it (Shazeer 2020, "GLU Variants", eq. 6).
//
//     y = x Phi(x)                    Phi: the normal distribution's cumulative, phi: its density
//     y = a b Phi(b)                  where a row is a and then b
//
// Backward, for a gradient dy of the loss:
//     1. dx = dy (Phi(x) + x phi(x))
//     2. da = dy b Phi(b),   db = dy a (Phi(b) + b phi(b))
//
// Array path: pydiff/ops/gelu.py. Reference: pydiff/reference/gelu.py.
//
// Elementwise: a vector at a time, in tiles of a row.
#include "kernels.h"
#include "parallel.h"
#include "simd_math.h"

namespace pydiff {
namespace {

constexpr int64_t tile = 8192;                                      // elements of one work item
constexpr double nanoseconds = 1.0, backward_nanoseconds = 1.2;  // about what an element takes

// Phi(x) and phi(x), and x as it is to be multiplied with them: within +-12.9, beyond which Phi is 0 or 1 and phi is 0
// for all that float32 knows; smaller numbers would be subnormal, and infinity times zero is no number.
//
// Phi(-a) = exp(-a^2 / 2) erfcx(a / sqrt 2) / 2 for a >= 0, where erfcx falls slowly, as 1 / a does in the end: in
// t = 1 / (1 + 5/16 a), it is t times a polynomial (the form is Hastings's, "Approximations for Digital Computers", 1955,
// sheet 46; the coefficients are our own minimax fit, relative error 1e-8 before rounding).
struct Normal {
    vfloat x, cumulative, density;

    explicit Normal(vfloat any) : x(at_most(at_least(any, -12.9f), 12.9f)) {
        const vfloat a = x < 0.0f ? -x : x, e = exp_of_moderate(-0.5f * (x * x)), t = 1.0f / (1.0f + 0.3125f * a);
        vfloat p = t * -0x1.2dd2b8p-6f + 0x1.68f98ap-4f;
        p = p * t + -0x1.256096p-3f;
        p = p * t + 0x1.051fe2p-4f;
        p = p * t + 0x1.9c68d4p-8f;
        p = p * t + 0x1.9fe694p-5f;
        p = p * t + 0x1.77cb5ep-4f;
        p = p * t + 0x1.c8d15ep-4f;
        p = p * t + 0x1.ff270ap-4f;
        p = p * t + 0x1.fe9ed0p-4f;
        const vfloat tail = e * (p * t);
        cumulative = x < 0.0f ? tail : 1.0f - tail;
        density = e * 0.39894228f;
    }
    vfloat gelu(vfloat any) const { return (any < 0.0f ? x : any) * cumulative; }
    vfloat slope() const { return cumulative + x * density; }
};

}  // namespace

template <>
void gelu_forward(int64_t size, const float* x, float* y) {
    parallel_tiles(1, size, tile, nanoseconds, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; e += simd_width) {
            const vfloat xs = load_upto(x + e, end - e);
            store_upto(y + e, Normal(xs).gelu(xs), end - e);
        }
    });
}

template <>
void gelu_backward(int64_t size, const float* dy, const float* x, float* dx) {
    parallel_tiles(1, size, tile, backward_nanoseconds, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; e += simd_width)
            store_upto(dx + e, load_upto(dy + e, end - e) * Normal(load_upto(x + e, end - e)).slope(), end - e);  // 1
    });
}

template <>
void geglu_forward(int64_t rows, int64_t c, const float* x, float* y) {
    parallel_tiles(rows, c, tile, nanoseconds, [&](int64_t i, int64_t begin, int64_t end) {
        const float *const a = x + 2 * i * c, *const b = a + c;
        for (int64_t e = begin; e < end; e += simd_width) {
            const vfloat bs = load_upto(b + e, end - e);
            store_upto(y + i * c + e, load_upto(a + e, end - e) * Normal(bs).gelu(bs), end - e);
        }
    });
}

template <>
void geglu_backward(int64_t rows, int64_t c, const float* dy, const float* x, float* dx) {
    parallel_tiles(rows, c, tile, backward_nanoseconds, [&](int64_t i, int64_t begin, int64_t end) {
        const float *const a = x + 2 * i * c, *const b = a + c;
        float *const da = dx + 2 * i * c, *const db = da + c;
        for (int64_t e = begin; e < end; e += simd_width) {
            const vfloat bs = load_upto(b + e, end - e), dys = load_upto(dy + i * c + e, end - e);
            const Normal normal(bs);
            store_upto(da + e, dys * normal.gelu(bs), end - e);  // 2
            store_upto(db + e, dys * load_upto(a + e, end - e) * normal.slope(), end - e);
        }
    });
}

}  // namespace pydiff
