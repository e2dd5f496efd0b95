// Group normalisation (Wu and He 2018, eq. 1-2 and 7) with an optional SiLU behind it, and its backward.
//
//     xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)       mean, var over the m = s c / groups elements of a group
//     z    = gamma xhat + beta
//     y    = act(z)                                              act = SiLU or identity
//
// Backward, for a gradient dy of the loss; every sum and mean is over what the index leaves out:
//     1. dz     = dy act'(z),   z computed again from x         SiLU' = sigma(z) (1 + z (1 - sigma(z)))
//     2. dbeta  = sum_{n,s} dz,   dgamma = sum_{n,s} dz xhat
//     3. dxhat  = gamma dz
//     4. dx     = rstd (dxhat - mean_group(dxhat) - xhat mean_group(dxhat xhat))
// The two means in 4 follow from the sums per channel that 2 needs anyway: mean_group(dxhat) = sum_c gamma[c] (sum_s dz) / m.
//
// Array path: pydiff/ops/group_norm.py. Reference: pydiff/reference/group_norm.py.
//
// Layout: x (n, s, c) with channels last, so a pixel's channels are contiguous and a group is a slice of each pixel. Both
// directions are a reduction over the pixels of a sample, then a map over them. Three sizes, all from the shape of one sample:
//     chunk   pixels whose values stay in the first-level cache: reductions read them twice, or add them up in float
//     part    pixels that one thread takes at a time; its sums are double, and are combined in order of the parts
//     sample  what is normalised
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd_math.h"

namespace pydiff {
namespace {

constexpr int64_t most_pixels = 128;  // what may be added up in float before the sum goes on in double

struct Plan {
    int64_t width;        // channels of a group
    int64_t chunk;        // pixels that stay in the first-level cache
    int64_t part, parts;  // pixels, and parts of a sample

    explicit Plan(const GroupNormShape& s) : width(s.c / s.groups) {
        chunk = std::clamp<int64_t>(8192 / s.c, 8, most_pixels);
        part = std::max<int64_t>(1, 32768 / (chunk * s.c)) * chunk;
        parts = (s.s + part - 1) / part;
    }
    int64_t pixels(const GroupNormShape& s, int64_t index) const { return std::min(part, s.s - index * part); }
};

// Runs reduce(i, part) for every part of every sample i, and then map(i, first part, last part + 1). A thread that takes a
// whole sample finds it in its cache the second time; with few samples their parts are spread over the threads instead.
// The arithmetic is the same in both cases.
template <class Reduce, class Map>
void reduce_then_map(int64_t n, int64_t parts, Reduce reduce, Map map) {
    if (parts == 1 || n >= 2 * threads()) {
        parallel_for(n, 1, [&](int64_t i) {
            for (int64_t k = 0; k < parts; ++k) reduce(i, k);
            map(i, 0, parts);
        });
    } else {
        parallel_for(n * parts, 1, [&](int64_t item) { reduce(item / parts, item % parts); });
        parallel_for(n * parts, 1, [&](int64_t item) { map(item / parts, item % parts, item % parts + 1); });
    }
}

// Calls block(vectors, first channel) for blocks of four vectors, then of one, which may reach beyond the last channel.
template <class F>
void for_channel_blocks(int64_t c, F block) {
    int64_t j = 0;
    for (; j + 4 * simd_width <= c; j += 4 * simd_width) block(std::integral_constant<int, 4>(), j);
    for (; j < c; j += simd_width) block(std::integral_constant<int, 1>(), j);
}

// The sum of n floats, in double and in a fixed order.
double sum(const float* v, int64_t n) {
    typedef double vdouble __attribute__((vector_size(32)));
    typedef float vfloat4 __attribute__((vector_size(16)));
    vdouble sums = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vfloat4 part;
        std::memcpy(&part, v + i, sizeof part);
        sums += __builtin_convertvector(part, vdouble);
    }
    double total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (; i < n; ++i) total += v[i];
    return total;
}

// ---------------------------------------------------------------- statistics

// Mean and sum of squared deviations of some elements. A sum of squares minus the square of the sum would lose every digit
// for data far from zero, so deviations are taken from a first estimate of the mean and pieces are merged by the formula of
// Chan, Golub and LeVeque (1983, eq. 2.1).
struct Moments {
    double count = 0, mean = 0, m2 = 0;

    void merge(double other_count, double other_mean, double other_m2) {
        const double total = count + other_count, delta = other_mean - mean, share = other_count / total;
        mean += delta * share;
        m2 += other_m2 + delta * delta * count * share;
        count = total;
    }
};

// sums[c] = sum over the pixels of x.
void channel_sums(int64_t pixels, int64_t c, const float* x, float* sums) {
    for_channel_blocks(c, [=](auto vectors, int64_t j) {
        vfloat acc[vectors] = {};
        for (int64_t p = 0; p < pixels; ++p)
            for (int r = 0; r < vectors; ++r) acc[r] += load_upto(x + p * c + j + r * simd_width, c - j - r * simd_width);
        for (int r = 0; r < vectors; ++r) store_upto(sums + j + r * simd_width, acc[r], c - j - r * simd_width);
    });
}

// first[c] = sum over the pixels of x - centre[c], second[c] = sum of its square.
void channel_deviations(int64_t pixels, int64_t c, const float* x, const float* centre, float* first, float* second) {
    for_channel_blocks(c, [=](auto vectors, int64_t j) {
        vfloat middle[vectors], acc1[vectors] = {}, acc2[vectors] = {};
        for (int r = 0; r < vectors; ++r) middle[r] = load_upto(centre + j + r * simd_width, c - j - r * simd_width);
        for (int64_t p = 0; p < pixels; ++p) {
            for (int r = 0; r < vectors; ++r) {
                const vfloat d = load_upto(x + p * c + j + r * simd_width, c - j - r * simd_width) - middle[r];
                acc1[r] += d;
                acc2[r] += d * d;
            }
        }
        for (int r = 0; r < vectors; ++r) {
            store_upto(first + j + r * simd_width, acc1[r], c - j - r * simd_width);
            store_upto(second + j + r * simd_width, acc2[r], c - j - r * simd_width);
        }
    });
}

// The moments of every group over `pixels` pixels.
void part_moments(const GroupNormShape& s, const Plan& plan, int64_t pixels, const float* x, Moments* moments /* (groups) */) {
    float* const centre = scratch(0, static_cast<size_t>(3 * s.c));
    float *const first = centre + s.c, *const second = first + s.c;
    for (int64_t g = 0; g < s.groups; ++g) moments[g] = Moments();
    for (int64_t p = 0; p < pixels; p += plan.chunk) {
        const int64_t size = std::min(plan.chunk, pixels - p);
        const double count = static_cast<double>(size * plan.width);
        channel_sums(size, s.c, x + p * s.c, first);
        for (int64_t g = 0; g < s.groups; ++g)
            std::fill_n(centre + g * plan.width, plan.width, static_cast<float>(sum(first + g * plan.width, plan.width) / count));
        channel_deviations(size, s.c, x + p * s.c, centre, first, second);
        for (int64_t g = 0; g < s.groups; ++g) {
            // What the estimate was off by; zero in exact arithmetic.
            const double off = sum(first + g * plan.width, plan.width) / count;
            const double m2 = sum(second + g * plan.width, plan.width) - off * off * count;
            moments[g].merge(count, centre[g * plan.width] + off, m2);
        }
    }
}

// ---------------------------------------------------------------- forward

// What each channel of one sample needs, side by side in scratch: z = (x - mean) scale + beta.
struct Affine {
    float *mean, *scale;

    Affine(const GroupNormShape& s, const Plan& plan, int slot, const float* mean_of_group, const float* rstd_of_group,
           const float* gamma)
        : mean(scratch(slot, static_cast<size_t>(2 * s.c))), scale(mean + s.c) {
        for (int64_t j = 0; j < s.c; ++j) {
            mean[j] = mean_of_group[j / plan.width];
            scale[j] = rstd_of_group[j / plan.width] * gamma[j];
        }
    }
};

template <bool with_silu>
void normalise(int64_t pixels, int64_t c, const float* x, const Affine& affine, const float* beta, float* y) {
    for (int64_t p = 0; p < pixels; ++p, x += c, y += c) {
        for (int64_t j = 0; j < c; j += simd_width) {
            const vfloat z = (load_upto(x + j, c - j) - load_upto(affine.mean + j, c - j)) * load_upto(affine.scale + j, c - j) +
                             load_upto(beta + j, c - j);
            store_upto(y + j, with_silu ? silu(z) : z, c - j);
        }
    }
}

// ---------------------------------------------------------------- backward

// Terms 1 and 2 over a few pixels: sums[j] = sum dz, sums[c + j] = sum dz (x - mean). With SiLU, dz is kept in dx
// for the second pass; without, it is dy.
template <bool with_silu>
void channel_gradients(int64_t pixels, int64_t c, const float* dy, const float* x, const Affine& affine, const float* beta,
                       float* dx, float* sums) {
    std::fill_n(sums, 2 * c, 0.0f);
    for (int64_t p = 0; p < pixels; ++p, dy += c, x += c, dx += c) {
        for (int64_t j = 0; j < c; j += simd_width) {
            const vfloat centred = load_upto(x + j, c - j) - load_upto(affine.mean + j, c - j);
            vfloat dz = load_upto(dy + j, c - j);
            if (with_silu) {
                dz *= silu_derivative(centred * load_upto(affine.scale + j, c - j) + load_upto(beta + j, c - j));  // 1
                store_upto(dx + j, dz, c - j);
            }
            store_upto(sums + j, load_upto(sums + j, c - j) + dz, c - j);                    // 2
            store_upto(sums + c + j, load_upto(sums + c + j, c - j) + dz * centred, c - j);  // 2, but for rstd
        }
    }
}

// The sums of channel_gradients over a part, in double: totals[j] and totals[c + j].
void part_gradients(const GroupNormShape& s, int64_t pixels, const float* dy, const float* x,
                    const Affine& affine, const float* beta, float* dx, double* totals /* (2, c) */) {
    float* const sums = scratch(1, static_cast<size_t>(2 * s.c));
    std::fill_n(totals, 2 * s.c, 0.0);
    for (int64_t p = 0; p < pixels; p += most_pixels) {
        const int64_t size = std::min(most_pixels, pixels - p), at = p * s.c;
        (s.silu ? channel_gradients<true> : channel_gradients<false>)(size, s.c, dy + at, x + at, affine, beta, dx + at, sums);
        for (int64_t j = 0; j < 2 * s.c; ++j) totals[j] += sums[j];
    }
}

// Term 4 as dx = scale dz - offset - slope (x - mean), with offset = rstd mean_group(dxhat) and
// slope = rstd^2 mean_group(dxhat xhat): both constant over a group.
void input_gradient(int64_t pixels, int64_t c, const float* dz, const float* x, const Affine& affine, const float* offset,
                    const float* slope, float* dx) {
    for (int64_t p = 0; p < pixels; ++p, dz += c, x += c, dx += c) {
        for (int64_t j = 0; j < c; j += simd_width) {
            const vfloat centred = load_upto(x + j, c - j) - load_upto(affine.mean + j, c - j);
            store_upto(dx + j, load_upto(dz + j, c - j) * load_upto(affine.scale + j, c - j) - load_upto(offset + j, c - j) -
                                   centred * load_upto(slope + j, c - j), c - j);
        }
    }
}

}  // namespace

void group_norm_forward(const GroupNormShape& s, float eps, const float* x, const float* gamma, const float* beta, float* y,
                        float* mean, float* rstd) {
    if (s.n * s.s * s.c == 0) return;
    const Plan plan(s);
    const int64_t sample = s.s * s.c;
    std::vector<Moments> moments(static_cast<size_t>(s.n * plan.parts * s.groups));
    auto reduce = [&](int64_t i, int64_t k) {
        part_moments(s, plan, plan.pixels(s, k), x + i * sample + k * plan.part * s.c,
                     moments.data() + (i * plan.parts + k) * s.groups);
    };
    auto map = [&](int64_t i, int64_t begin, int64_t end) {
        float *const mean_i = scratch(2, static_cast<size_t>(2 * s.groups)), *const rstd_i = mean_i + s.groups;
        for (int64_t g = 0; g < s.groups; ++g) {
            Moments all;
            for (int64_t k = 0; k < plan.parts; ++k) {
                const Moments& part = moments[static_cast<size_t>((i * plan.parts + k) * s.groups + g)];
                all.merge(part.count, part.mean, part.m2);
            }
            mean_i[g] = static_cast<float>(all.mean);
            rstd_i[g] = static_cast<float>(1.0 / std::sqrt(all.m2 / all.count + eps));
        }
        if (begin == 0) {
            std::copy_n(mean_i, s.groups, mean + i * s.groups);
            std::copy_n(rstd_i, s.groups, rstd + i * s.groups);
        }
        const Affine affine(s, plan, 3, mean_i, rstd_i, gamma);
        const int64_t first = begin * plan.part, pixels = std::min(end * plan.part, s.s) - first;
        const int64_t at = i * sample + first * s.c;
        (s.silu ? normalise<true> : normalise<false>)(pixels, s.c, x + at, affine, beta, y + at);
    };
    reduce_then_map(s.n, plan.parts, reduce, map);
}

void group_norm_backward(const GroupNormShape& s, const float* dy, const float* x, const float* gamma, const float* beta,
                         const float* mean, const float* rstd, float* dx, float* dgamma, float* dbeta) {
    std::fill_n(dgamma, s.c, 0.0f);
    std::fill_n(dbeta, s.c, 0.0f);
    if (s.n * s.s * s.c == 0) return;
    const Plan plan(s);
    const int64_t sample = s.s * s.c;
    std::vector<double> totals(static_cast<size_t>(s.n * plan.parts * 2 * s.c));
    auto total = [&](int64_t i, int64_t k) { return totals.data() + (i * plan.parts + k) * 2 * s.c; };
    auto reduce = [&](int64_t i, int64_t k) {
        const int64_t at = i * sample + k * plan.part * s.c;
        const Affine affine(s, plan, 3, mean + i * s.groups, rstd + i * s.groups, gamma);
        part_gradients(s, plan.pixels(s, k), dy + at, x + at, affine, beta, dx + at, total(i, k));
    };
    auto map = [&](int64_t i, int64_t begin, int64_t end) {
        float *const offset = scratch(2, static_cast<size_t>(2 * s.c)), *const slope = offset + s.c;
        const double m = static_cast<double>(s.s * plan.width);
        for (int64_t g = 0; g < s.groups; ++g) {
            const double r = rstd[i * s.groups + g];
            double sum_dxhat = 0, sum_dxhat_centred = 0;
            for (int64_t j = g * plan.width; j < (g + 1) * plan.width; ++j) {
                for (int64_t k = 0; k < plan.parts; ++k) {
                    sum_dxhat += gamma[j] * total(i, k)[j];  // 3
                    sum_dxhat_centred += gamma[j] * total(i, k)[s.c + j];
                }
            }
            std::fill_n(offset + g * plan.width, plan.width, static_cast<float>(r * sum_dxhat / m));
            std::fill_n(slope + g * plan.width, plan.width, static_cast<float>(r * r * r * sum_dxhat_centred / m));
        }
        const Affine affine(s, plan, 3, mean + i * s.groups, rstd + i * s.groups, gamma);
        const int64_t first = begin * plan.part, pixels = std::min(end * plan.part, s.s) - first;
        const int64_t at = i * sample + first * s.c;
        input_gradient(pixels, s.c, (s.silu ? dx : dy) + at, x + at, affine, offset, slope, dx + at);  // 4
    };
    reduce_then_map(s.n, plan.parts, reduce, map);

    // Term 2 across the batch, in order of samples and parts.
    parallel_for(s.c, 64, [&](int64_t j) {
        double sum_dz = 0, sum_dz_xhat = 0;
        for (int64_t i = 0; i < s.n; ++i) {
            for (int64_t k = 0; k < plan.parts; ++k) {
                sum_dz += total(i, k)[j];
                sum_dz_xhat += rstd[i * s.groups + j / plan.width] * total(i, k)[s.c + j];
            }
        }
        dbeta[j] = static_cast<float>(sum_dz);
        dgamma[j] = static_cast<float>(sum_dz_xhat);
    });
}

}  // namespace pydiff
