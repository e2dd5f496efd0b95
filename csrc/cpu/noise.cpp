// Forward diffusion with noise made on the spot (Ho, Jain and Abbeel 2020, eq. 4), and the squared error against it:
//
//     x_t  = alpha x0 + sigma eps                             alpha, sigma per sample; eps from philox.h
//     loss = weight / size sum_e (f - target)^2,   target = p x0 + q eps        p, q, weight per sample
//
// eps is a function of (seed, purpose, sample, step, element), so it is never stored: noise_loss draws it again. A term
// of the target whose coefficient is 0 is omitted: x0 is not read then, or eps not drawn.
// Backward, eps being a constant:
//     1. dx0 = alpha dx_t
//     2. df  = dloss weight 2 / size (f - target)
//
// Array path: pydiff/ops/noise.py. Reference: pydiff/reference/noise.py.
//
// Work is divided into tiles of a sample's elements. eps and x_t leave in one pass: eps is never read back from memory.
// A loss is a float32 sum per tile and element of the vector, short enough; tiles are added in double and in order.
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "philox.h"

namespace pydiff {
namespace {

constexpr int64_t tile = 4096;  // elements of one work item; a multiple of every drawn_width
constexpr double with_normals = 2;  // about the nanoseconds of an element for which a normal is drawn ..
constexpr double without = 0.25;    // .. and of one that is only multiplied

// Calls item(at, count, d) for the vectors of elements begin .. end of sample i: d = f - target at offset `at`, of
// which `count` elements exist; behind them d is any number.
template <class Item>
inline void differences(int64_t i, int64_t begin, int64_t end, int64_t size, const float* f, const float* x0, float p,
                        float q, const NoiseKey& key, Item&& item) {
    for (int64_t e = begin; e < end; e += drawn_width) {
        vfloat z[4] = {};
        if (q != 0) normals(key, i, e, z);
        for (int64_t k = 0, element = e; k < 4 && element < end; ++k, element += simd_width) {
            const int64_t at = i * size + element, count = end - element;
            const vfloat clean = p != 0 ? p * load_upto(x0 + at, count) : vfloat{};
            item(at, count, load_upto(f + at, count) - (clean + q * z[k]));
        }
    }
}

}  // namespace

template <>
void normal(int64_t n, int64_t size, const NoiseKey& key, float* eps) {
    parallel_tiles(n, size, tile, with_normals, [&](int64_t i, int64_t begin, int64_t end) {
        float* out = eps + i * size;
        for (int64_t e = begin; e < end; e += drawn_width) {
            vfloat z[4];
            normals(key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) store_upto(out + at, z[k], end - at);
        }
    });
}

template <>
void noise_forward(int64_t n, int64_t size, const float* x0, const float* alpha, const float* sigma,
                   const NoiseKey& key, float* x_t, float* eps) {
    parallel_tiles(n, size, tile, with_normals, [&](int64_t i, int64_t begin, int64_t end) {
        const float a = alpha[i], s = sigma[i];
        const int64_t row = i * size;
        for (int64_t e = begin; e < end; e += drawn_width) {
            vfloat z[4];
            normals(key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width) {
                if (eps) store_upto(eps + row + at, z[k], end - at);
                store_upto(x_t + row + at, a * load_upto(x0 + row + at, end - at) + s * z[k], end - at);
            }
        }
    });
}

template <>
void noise_backward(int64_t n, int64_t size, const float* dx_t, const float* alpha, float* dx0) {
    parallel_tiles(n, size, tile, without, [&](int64_t i, int64_t begin, int64_t end) {
        const float a = alpha[i];
        for (int64_t e = i * size + begin; e < i * size + end; ++e) dx0[e] = a * dx_t[e];  // 1
    });
}

template <>
void noise_loss_forward(int64_t n, int64_t size, const float* f, const float* x0, const float* p, const float* q,
                        const float* weight, const NoiseKey& key, float* loss) {
    const int64_t tiles = (size + tile - 1) / tile;
    std::vector<double> sums(static_cast<size_t>(n * tiles));
    parallel_tiles(n, size, tile, with_normals, [&](int64_t i, int64_t begin, int64_t end) {
        vfloat sum{};
        differences(i, begin, end, size, f, x0, p[i], q[i], key, [&](int64_t, int64_t count, vfloat d) {
            const vfloat square = d * d;
            if (count >= simd_width)
                sum += square;
            else
                for (int64_t j = 0; j < count; ++j) sum[j] += square[j];
        });
        double& total = sums[static_cast<size_t>(i * tiles + begin / tile)];
        for (int j = 0; j < simd_width; ++j) total += static_cast<double>(sum[j]);
    });
    for (int64_t i = 0; i < n; ++i) {
        double total = 0;
        for (int64_t k = 0; k < tiles; ++k) total += sums[static_cast<size_t>(i * tiles + k)];
        loss[i] = static_cast<float>(weight[i] * total / static_cast<double>(size));
    }
}

template <>
void noise_loss_backward(int64_t n, int64_t size, const float* dloss, const float* f, const float* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, float* df) {
    parallel_tiles(n, size, tile, with_normals, [&](int64_t i, int64_t begin, int64_t end) {
        const float factor = dloss[i] * weight[i] * 2.0f / static_cast<float>(size);
        differences(i, begin, end, size, f, x0, p[i], q[i], key, [&](int64_t at, int64_t count, vfloat d) {
            store_upto(df + at, factor * d, count);  // 2
        });
    });
}

}  // namespace pydiff
