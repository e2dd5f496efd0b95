// Forward diffusion with its noise made on the spot (Ho, Jain and Abbeel 2020, eq. 4), and the squared error against it:
//
//     x_t  = alpha x0 + sigma eps                             alpha, sigma per sample; eps from philox.h
//     loss = weight / size sum_e (f - target)^2,   target = p x0 + q eps        p, q, weight per sample
//
// eps is a function of (seed, purpose, sample, step, element), so nobody stores it: noise_loss draws it again.
// Backward, eps being a constant:
//     1. dx0 = alpha dx_t
//     2. df  = dloss weight 2 / size (f - target)
//
// Array path: pydiff/ops/noise.py. Reference: pydiff/reference/noise.py.
//
// Work is cut into tiles of a sample's elements. eps and x_t leave in one pass: eps is never read back from memory.
#include <vector>

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
                if (eps) store_upto(eps + row + at, z[k], end - at);
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

void noise_loss_forward(int64_t n, int64_t size, const float* f, const float* x0, const float* p, const float* q,
                        const float* weight, const NoiseKey& key, float* loss) {
    // A tile's sum is float32 per vector element and short; tiles are added in double and in order.
    const int64_t tiles = (size + tile - 1) / tile;
    std::vector<double> sums(static_cast<size_t>(n * tiles));
    parallel_tiles(n, size, tile, [&](int64_t i, int64_t begin, int64_t end) {
        vfloat sum{};
        for (int64_t e = begin; e < end; e += normals_width) {
            vfloat z[4];
            normals(key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) {
                const vfloat difference = load_upto(f + i * size + at, end - at) -
                                          (p[i] * load_upto(x0 + i * size + at, end - at) + q[i] * z[k]);
                const vfloat square = difference * difference;
                if (end - at >= simd_width)
                    sum += square;
                else  // behind the end, z is not zero
                    for (int64_t j = 0; j < end - at; ++j) sum[j] += square[j];
            }
        }
        double total = 0;
        for (int j = 0; j < simd_width; ++j) total += static_cast<double>(sum[j]);
        sums[static_cast<size_t>(i * tiles + begin / tile)] = total;
    });
    for (int64_t i = 0; i < n; ++i) {
        double total = 0;
        for (int64_t k = 0; k < tiles; ++k) total += sums[static_cast<size_t>(i * tiles + k)];
        loss[i] = static_cast<float>(weight[i] * total / static_cast<double>(size));
    }
}

void noise_loss_backward(int64_t n, int64_t size, const float* dloss, const float* f, const float* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, float* df) {
    parallel_tiles(n, size, tile, [&](int64_t i, int64_t begin, int64_t end) {
        const float factor = dloss[i] * weight[i] * 2.0f / static_cast<float>(size);
        for (int64_t e = begin; e < end; e += normals_width) {
            vfloat z[4];
            normals(key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) {
                const int64_t row = i * size + at;
                const vfloat target = p[i] * load_upto(x0 + row, end - at) + q[i] * z[k];
                store_upto(df + row, factor * (load_upto(f + row, end - at) - target), end - at);  // 2
            }
        }
    });
}

}  // namespace pydiff
