// Mean and variance of every group of channels of channels-last pixels, in one pass over memory and without
// cancellation: the statistics of group_norm.
#pragma once
#include <algorithm>

#include "parallel.h"
#include "simd.h"

namespace pydiff {

constexpr int64_t chunk = 128;  // pixels added up in float before the sum goes on in double; few enough to lose nothing

// The sum of n floats, in double and in a fixed order.
inline double sum(const float* v, int64_t n) {
    typedef double vdouble __attribute__((vector_size(32)));
    typedef float vfloat4 __attribute__((vector_size(16)));
    vdouble sums = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vfloat4 four;
        std::memcpy(&four, v + i, sizeof four);
        sums += __builtin_convertvector(four, vdouble);
    }
    double total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (; i < n; ++i) total += v[i];
    return total;
}

// Mean and sum of squared deviations of some elements. The sum of squares less the square of the sum would lose every
// digit of data far from zero; so each chunk takes deviations from the mean of the chunks before it, and the chunks are
// merged by the formula of Chan, Golub and LeVeque ("Algorithms for computing the sample variance", 1983). A mean that
// is off by delta costs digits in proportion to delta^2, but then the variance contains about delta^2 too, so the
// relative error stays small.
struct Moments {
    double count = 0, mean = 0, m2 = 0;

    void merge(const Moments& other) {
        const double total = count + other.count, delta = other.mean - mean, share = other.count / total;
        mean += delta * share;
        m2 += other.m2 + delta * delta * count * share;
        count = total;
    }
};

// first[c] = sum over the pixels of x - centre[c], second[c] = sum of its square.
inline void channel_deviations(int64_t pixels, int64_t c, const float* x, const float* centre, float* first,
                               float* second) {
    constexpr int unroll = 4;  // vectors whose sums stay in registers
    for (int64_t block = 0; block < c; block += unroll * simd_width) {
        const int vectors = static_cast<int>(std::min<int64_t>(unroll, (c - block + simd_width - 1) / simd_width));
        vfloat middle[unroll] = {}, sum1[unroll] = {}, sum2[unroll] = {};
        for (int r = 0; r < vectors; ++r)
            middle[r] = load_upto(centre + block + r * simd_width, c - block - r * simd_width);
        auto add = [&](int r, vfloat value) {
            const vfloat d = value - middle[r];
            sum1[r] += d;
            sum2[r] += d * d;
        };
        const float* pixel = x + block;
        if (block + unroll * simd_width <= c) {
            for (int64_t p = 0; p < pixels; ++p, pixel += c)
                for (int r = 0; r < unroll; ++r) add(r, load(pixel + r * simd_width));
        } else {
            for (int64_t p = 0; p < pixels; ++p, pixel += c)
                for (int r = 0; r < vectors; ++r) add(r, load_upto(pixel + r * simd_width, c - block - r * simd_width));
        }
        for (int r = 0; r < vectors; ++r) {
            store_upto(first + block + r * simd_width, sum1[r], c - block - r * simd_width);
            store_upto(second + block + r * simd_width, sum2[r], c - block - r * simd_width);
        }
    }
}

// The moments of every group of c / groups channels over x (pixels, c).
inline void group_moments(int64_t pixels, int64_t c, int64_t groups, const float* x, Moments* moments /* (groups) */) {
    const int64_t width = c / groups, few = std::min<int64_t>(16, pixels);
    float* const centre = scratch(1, static_cast<size_t>(3 * c));
    float *const first = centre + c, *const second = first + c;
    // A few pixels give the first mean to take deviations from.
    std::fill_n(centre, c, 0.0f);
    channel_deviations(few, c, x, centre, first, second);
    for (int64_t g = 0; g < groups; ++g)
        moments[g] = {0, sum(first + g * width, width) / static_cast<double>(few * width), 0};
    for (int64_t p = 0; p < pixels; p += chunk) {
        const int64_t size = std::min(chunk, pixels - p);
        const double count = static_cast<double>(size * width);
        for (int64_t g = 0; g < groups; ++g)
            std::fill_n(centre + g * width, width, static_cast<float>(moments[g].mean));
        channel_deviations(size, c, x + p * c, centre, first, second);
        for (int64_t g = 0; g < groups; ++g) {
            const double off = sum(first + g * width, width) / count;  // the chunk's mean less the centre
            const double m2 = sum(second + g * width, width) - off * off * count;
            moments[g].merge({count, centre[g * width] + off, std::max(m2, 0.0)});  // rounding; NaN stays NaN
        }
    }
}

}  // namespace pydiff
