// Dropout (Srivastava et al. 2014, section 4) with masks made on the spot:
//
//     y = m x,   m = 1 / (1 - p) where u >= p, else 0        u in [0, 1) from philox.h
//
// u is a function of (seed, purpose, sample, step, element), so the mask is never stored: backward draws it again.
// Backward, m being a constant:
//     dx = m dy, the same function
//
// Array path: pydiff/ops/dropout.py. Reference: pydiff/reference/dropout.py.
//
// Work is divided into tiles of a sample's elements, as for noise.cpp.
#include "kernels.h"
#include "parallel.h"
#include "philox.h"

namespace pydiff {
namespace {

constexpr int64_t tile = 4096;    // elements of one work item; a multiple of every drawn_width
constexpr double nanoseconds = 1;  // about what an element takes

}  // namespace

template <>
void dropout_forward(int64_t n, int64_t size, const float* x, float p, float scale, const NoiseKey& key, float* y) {
    parallel_tiles(n, size, tile, nanoseconds, [&](int64_t i, int64_t begin, int64_t end) {
        const float* in = x + i * size;
        float* out = y + i * size;
        for (int64_t e = begin; e < end; e += drawn_width) {
            vfloat u[4];
            uniforms(key, i, e, u);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) {
                const vfloat m = u[k] >= p ? vfloat{} + scale : vfloat{};
                store_upto(out + at, load_upto(in + at, end - at) * m, end - at);
            }
        }
    });
}

}  // namespace pydiff
