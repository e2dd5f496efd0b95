// Forward diffusion with its noise made on the spot (Ho, Jain and Abbeel 2020, eq. 4):
//
//     x_t = alpha x0 + sigma eps        alpha, sigma per sample; eps standard normal, element by element from philox.h
//
// Backward, for a gradient dx_t of the loss with respect to x_t (eps is a constant):
//     1. dx0 = alpha dx_t
//
// Array path: pydiff/ops/noise.py. Reference: pydiff/reference/noise.py.
//
// Work is cut into tiles of a sample's elements. eps and x_t leave in one pass: eps is never read back from memory.
#include "kernels.h"
#include "parallel.h"
#include "philox.h"

namespace pydiff {
namespace {

constexpr int64_t tile = 4096;  // elements of one work item; a multiple of every normals_width

}  // namespace

void normal(int64_t n, int64_t size, const NoiseKey& key, float* eps) {
    parallel_tiles(n, size, tile, [&](int64_t i, int64_t begin, int64_t end) {
        float* out = eps + i * size;
        for (int64_t e = begin; e < end; e += normals_width) {
            vfloat z[4];
            normals(key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) store_upto(out + at, z[k], end - at);
        }
    });
}

void noise_forward(int64_t n, int64_t size, const float* x0, const float* alpha, const float* sigma,
                   const NoiseKey& key, float* x_t, float* eps) {
    parallel_tiles(n, size, tile, [&](int64_t i, int64_t begin, int64_t end) {
        const float a = alpha[i], s = sigma[i];
        const int64_t row = i * size;
        for (int64_t e = begin; e < end; e += normals_width) {
            vfloat z[4];
            normals(key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) {
                store_upto(eps + row + at, z[k], end - at);
                store_upto(x_t + row + at, a * load_upto(x0 + row + at, end - at) + s * z[k], end - at);
            }
        }
    });
}

void noise_backward(int64_t n, int64_t size, const float* dx_t, const float* alpha, float* dx0) {
    parallel_tiles(n, size, tile, [&](int64_t i, int64_t begin, int64_t end) {
        const float a = alpha[i];
        for (int64_t e = i * size + begin; e < i * size + end; ++e) dx0[e] = a * dx_t[e];  // 1
    });
}

}  // namespace pydiff
