// Mean and variance of every group of channels of channels-last pixels, without cancellation: the statistics of
// group_norm.
#pragma once
#include <algorithm>

#include "channels.h"
#include "parallel.h"

namespace pydiff {

constexpr int64_t chunk = 128;  // pixels summed in float before the sum continues in double; few enough to lose nothing

// first[c] = sum over the pixels of x - centre[c], second[c] = sum of its square.
inline void channel_deviations(int64_t pixels, int64_t c, const float* x, const float* centre, float* first,
                               float* second) {
    for_channel_blocks<4>(c, [=](auto block) {
        constexpr int vectors = block.vectors, unroll = 4 / vectors;  // additions wait for each other: four chains
        vfloat middle[vectors], sum1[4] = {}, sum2[4] = {};
        for (int v = 0; v < vectors; ++v) middle[v] = block.load(centre, v);
        auto add = [&](const float* pixel, int u) {
            for (int v = 0; v < vectors; ++v) {
                const vfloat d = block.load(pixel, v) - middle[v];
                sum1[u * vectors + v] += d;
                sum2[u * vectors + v] += d * d;
            }
        };
        int64_t p = 0;
        for (; p + unroll <= pixels; p += unroll)
            for (int u = 0; u < unroll; ++u) add(x + (p + u) * c, u);
        for (; p < pixels; ++p) add(x + p * c, 0);
        for (int u = unroll / 2; u > 0; u /= 2) {
            for (int k = 0; k < u * vectors; ++k) {
                sum1[k] += sum1[u * vectors + k];
                sum2[k] += sum2[u * vectors + k];
            }
        }
        for (int v = 0; v < vectors; ++v) {
            block.store(first, v, sum1[v]);
            block.store(second, v, sum2[v]);
        }
    });
}

inline double* doubles(int slot, int64_t count) {
    return reinterpret_cast<double*>(scratch(slot, static_cast<size_t>(2 * count)));
}

// sums[g] = sum over the channels of group g, in double.
template <class T>
inline void group_sums(int64_t groups, int64_t width, const T* v, double* sums) {
    for (int64_t g = 0; g < groups; ++g, v += width) {
        double sum = 0;
        for (int64_t j = 0; j < width; ++j) sum += v[j];
        sums[g] = sum;
    }
}

// out[j] = values[group of j]
template <class T>
inline void spread(int64_t groups, int64_t width, const T* values, float* out) {
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t j = 0; j < width; ++j) *out++ = static_cast<float>(values[g]);
}

// Mean and sum of squared deviations (m2) of every group of c / groups channels over x (pixels, c).
//
// The sum of squares less the square of the sum would lose every digit of data far from zero. So deviations are taken
// from a centre, the mean of the first pixels. A centre that is off by delta costs digits in proportion to delta^2 over
// the variance; but if the first 16 of p pixels are that far from the others, the variance is at least 16/p delta^2.
inline void group_moments(int64_t pixels, int64_t c, int64_t groups, const float* x, double* mean, double* m2) {
    const int64_t width = c / groups, few = std::min<int64_t>(16, pixels);
    float* const centre = scratch(1, static_cast<size_t>(3 * c));
    float *const first = centre + c, *const second = first + c;
    std::fill_n(centre, c, 0.0f);
    channel_deviations(few, c, x, centre, first, second);
    group_sums(groups, width, first, mean);
    const double share = 1.0 / static_cast<double>(few * width), count = static_cast<double>(pixels * width);
    for (int64_t g = 0; g < groups; ++g) mean[g] = static_cast<float>(mean[g] * share);
    spread(groups, width, mean, centre);
    double* const off = doubles(2, groups + 2 * c);
    if (pixels <= chunk) {
        channel_deviations(pixels, c, x, centre, first, second);
        group_sums(groups, width, first, off);
        group_sums(groups, width, second, m2);
    } else {
        double *const total1 = off + groups, *const total2 = total1 + c;
        std::fill_n(total1, 2 * c, 0.0);
        for (int64_t p = 0; p < pixels; p += chunk) {
            channel_deviations(std::min(chunk, pixels - p), c, x + p * c, centre, first, second);
            for (int64_t j = 0; j < 2 * c; ++j) total1[j] += first[j];
        }
        group_sums(groups, width, total1, off);
        group_sums(groups, width, total2, m2);
    }
    for (int64_t g = 0; g < groups; ++g) {
        off[g] /= count;  // the mean less the centre
        m2[g] = std::max(m2[g] - off[g] * off[g] * count, 0.0);  // rounding; NaN stays NaN
        mean[g] += off[g];
    }
}

// (mean, m2) of `count` elements of every group, with those of `more` others merged in (Chan, Golub and LeVeque 1983,
// "Algorithms for computing the sample variance").
inline void merge_moments(int64_t groups, double count, double* mean, double* m2, double more, const double* other_mean,
                          const double* other_m2) {
    const double share = more / (count + more);
    for (int64_t g = 0; g < groups; ++g) {
        const double delta = other_mean[g] - mean[g];
        mean[g] += delta * share;
        m2[g] += other_m2[g] + delta * delta * count * share;
    }
}

}  // namespace pydiff
