// Group normalisation (Wu and He 2018, eq. 1-2 and 7) with an optional SiLU behind it, and its backward.
//
//     xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)   mean, var over the m = s c / groups elements of a group
//     z    = gamma xhat + beta
//     y    = act(z)                                          act = SiLU or identity
//
// Backward, for a gradient dy of the loss:
//     1. dz     = dy act'(z)                                 z computed again; SiLU' = sigma(z) (1 + z (1 - sigma(z)))
//     2. dbeta  = sum_{n,s} dz,   dgamma = sum_{n,s} dz xhat
//     3. dxhat  = gamma dz
//     4. dx     = rstd (dxhat - mean_group(dxhat) - xhat mean_group(dxhat xhat))
//     5. dx_sum = sum_{n,s} dx
// The means in 4 follow from the sums per channel that 2 needs anyway: mean_group(dxhat) = sum_c gamma[c] sum_s dz / m.
//
// Array path: pydiff/ops/group_norm.py. Reference: pydiff/reference/group_norm.py.
//
// Layout: x (n, s, c) with channels last, so a group is a slice of every pixel. Both directions are a reduction over
// the pixels of a sample, then a map over them, and both walk whole pixels: memory is read in order, and there is one
// running sum per channel. Pixels come in pieces of three sizes, which depend on the shape of one sample only:
//     chunk   added up in float, a vector of channels at a time
//     part    one item of work; the sums of its chunks go on in double
//     sample  what is normalised; its parts are combined in order
#include <algorithm>
#include <cmath>

#include "group_norm_bands.h"
#include "kernels.h"
#include "moments.h"
#include "parallel.h"
#include "simd_math.h"

namespace pydiff {
namespace {

struct Parts {
    int64_t pixels, count, all;  // pixels of a part (fewer in the last), parts of a sample, pixels of a sample

    // About 32768 elements, so that a part and its results fit a second-level cache, and few enough pixels that the
    // first ones tell where they are (moments.h).
    explicit Parts(const GroupNormShape& s)
        : pixels(std::min<int64_t>(8, std::max<int64_t>(1, 32768 / (chunk * s.c))) * chunk),
          count((s.s + pixels - 1) / pixels),
          all(s.s) {}

    int64_t size(int64_t k) const { return std::min(pixels, all - k * pixels); }
};

// Runs reduce(i, part) for every part of every sample i, and then map(i, first part, last part + 1, next sample). A
// thread that takes a whole sample finds it in its cache the second time; with few samples their parts are spread over
// the threads instead. The arithmetic is the same in both cases. The next sample is the one that this thread likely
// takes next, if that fits its cache besides; else it is i itself. nanoseconds: about what an element takes.
template <class Reduce, class Map>
void reduce_then_map(const GroupNormShape& s, int64_t parts, double nanoseconds, Reduce reduce, Map map) {
    const double sample = nanoseconds * static_cast<double>(s.s * s.c), all = sample * static_cast<double>(s.n);
    if (parts == 1 || s.n >= 2 * threads()) {
        auto samples = [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                for (int64_t k = 0; k < parts; ++k) reduce(i, k);
                map(i, 0, parts, i + 1 < s.n && parts <= 2 ? i + 1 : i);
            }
        };
        const int64_t worth = static_cast<int64_t>(worth_claiming / (sample + 1)) + 1;
        const int64_t fair = threads() == 1 ? s.n : s.n / (4 * threads());  // leaves claims to the faster threads
        parallel_chunks(s.n, std::max(worth, fair), RangeBody(samples), all);
    } else {
        parallel_for(s.n * parts, 1, [&](int64_t item) { reduce(item / parts, item % parts); }, all / 2);
        parallel_for(
            s.n * parts, 1,
            [&](int64_t item) { map(item / parts, item % parts, item % parts + 1, item / parts); }, all / 2);
    }
}

// z = (x - mean) scale + beta with a mean and a scale for each channel of one sample, in the thread's scratch.
struct Affine {
    float *mean, *scale;

    Affine(const GroupNormShape& s, const float* mean_of_group, const float* rstd_of_group, const float* gamma)
        : mean(scratch(0, static_cast<size_t>(2 * s.c))), scale(mean + s.c) {
        spread(s.groups, s.c / s.groups, mean_of_group, mean);
        spread(s.groups, s.c / s.groups, rstd_of_group, scale);
        for (int64_t j = 0; j < s.c; ++j) scale[j] *= gamma[j];
    }
};

// ---------------------------------------------------------------- forward

// Mean and m2 of every group of every part, (n, parts, 2, groups) in the calling thread's scratch: made part by part, on
// any thread, and merged in their order.
struct Moments {
    const GroupNormShape& s;
    const Parts parts;
    double* const all;

    explicit Moments(const GroupNormShape& s)
        : s(s), parts(s), all(doubles(3, 2 * s.n * parts.count * s.groups)) {}

    double* of(int64_t i, int64_t k) const { return all + (i * parts.count + k) * 2 * s.groups; }

    void measure(const float* x, int64_t i, int64_t k) const {
        const float* const part = x + (i * s.s + k * parts.pixels) * s.c;
        group_moments(parts.size(k), s.c, s.groups, part, of(i, k), of(i, k) + s.groups);
    }

    // The statistics of sample i.
    void merge(int64_t i, float eps, float* mean /* (groups) */, float* rstd /* (groups) */) const {
        const int64_t width = s.c / s.groups;
        double *const centre = doubles(2, 2 * s.groups), *const m2 = centre + s.groups;
        std::copy_n(of(i, 0), 2 * s.groups, centre);
        for (int64_t k = 1; k < parts.count; ++k) {
            const double before = static_cast<double>(k * parts.pixels * width);
            const double more = static_cast<double>(parts.size(k) * width);
            merge_moments(s.groups, before, centre, m2, more, of(i, k), of(i, k) + s.groups);
        }
        for (int64_t g = 0; g < s.groups; ++g) {
            mean[g] = static_cast<float>(centre[g]);
            rstd[g] = static_cast<float>(1.0 / std::sqrt(m2[g] / static_cast<double>(s.s * width) + eps));
        }
    }
};

// soon: as many pixels that will be read next. The pass that reads them waits for memory, and this one computes: so it
// asks for them.
template <bool with_silu>  // flatten: a call for every pixel would cost as much as its work, here and below
__attribute__((flatten)) void normalise(int64_t pixels, int64_t c, const float* x, const Affine& affine,
                                        const float* beta, float* y, const float* soon) {
    for_pixels(pixels, c, [=](auto block, int64_t begin, int64_t end) {
        constexpr int vectors = block.vectors;
        vfloat mean[vectors], scale[vectors], shift[vectors], z[vectors];
        for (int v = 0; v < vectors; ++v) {
            mean[v] = block.load(affine.mean, v);
            scale[v] = block.load(affine.scale, v);
            shift[v] = block.load(beta, v);
        }
        for (int64_t p = begin; p < end; ++p) {
            for (int v = 0; v < vectors; ++v) __builtin_prefetch(soon + p * c + block.first + v * simd_width);
            for (int v = 0; v < vectors; ++v) z[v] = (block.load(x + p * c, v) - mean[v]) * scale[v] + shift[v];
            for (int v = 0; v < vectors; ++v) block.store(y + p * c, v, with_silu ? silu(z[v]) : z[v]);
        }
    });
}

// ---------------------------------------------------------------- backward

// Terms 1 and 2 over the pixels of a chunk: sums[j] = sum dz, sums[c + j] = sum dz (x - mean). With SiLU, dz is left in
// dx for the second pass; without, dz is dy.
template <bool with_silu>
__attribute__((flatten)) void channel_gradients(int64_t pixels, int64_t c, const float* dy, const float* x,
                                                const Affine& affine, const float* beta, float* dx, float* sums) {
    std::fill_n(sums, 2 * c, 0.0f);
    for_pixels(pixels, c, [=](auto block, int64_t begin, int64_t end) {
        constexpr int vectors = block.vectors;
        vfloat mean[vectors], scale[vectors], shift[vectors], sum1[vectors], sum2[vectors];
        for (int v = 0; v < vectors; ++v) {
            mean[v] = block.load(affine.mean, v);
            scale[v] = block.load(affine.scale, v);
            shift[v] = block.load(beta, v);
            sum1[v] = block.load(sums, v);
            sum2[v] = block.load(sums + c, v);
        }
        for (int64_t p = begin; p < end; ++p) {
            for (int v = 0; v < vectors; ++v) {
                const vfloat centred = block.load(x + p * c, v) - mean[v];
                vfloat dz = block.load(dy + p * c, v);
                if (with_silu) {
                    dz *= silu_derivative(centred * scale[v] + shift[v]);  // 1
                    block.store(dx + p * c, v, dz);
                }
                sum1[v] += dz;            // 2
                sum2[v] += dz * centred;  // 2, less the factor rstd
            }
        }
        for (int v = 0; v < vectors; ++v) {
            block.store(sums, v, sum1[v]);
            block.store(sums + c, v, sum2[v]);
        }
    });
}

// Term 2 over the pixels of a part, in double: totals[j] = sum dz, totals[c + j] = sum dz xhat.
void part_gradients(const GroupNormShape& s, int64_t pixels, const float* dy, const float* x, const Affine& affine,
                    const float* rstd /* (groups) */, const float* beta, float* dx, double* totals /* (2, c) */) {
    float* const sums = scratch(1, static_cast<size_t>(2 * s.c));
    std::fill_n(totals, 2 * s.c, 0.0);
    for (int64_t p = 0; p < pixels; p += chunk) {
        const int64_t size = std::min(chunk, pixels - p), at = p * s.c;
        const auto add_chunk = s.silu ? channel_gradients<true> : channel_gradients<false>;
        add_chunk(size, s.c, dy + at, x + at, affine, beta, dx + at, sums);
        for (int64_t j = 0; j < 2 * s.c; ++j) totals[j] += sums[j];
    }
    double* total = totals + s.c;
    for (int64_t g = 0; g < s.groups; ++g)
        for (int64_t j = 0; j < s.c / s.groups; ++j) *total++ *= rstd[g];
}

// Term 4 as dx = scale dz - offset - slope (x - mean), where offset = rstd mean_group(dxhat) and
// slope = rstd^2 mean_group(dxhat xhat) are the same for all channels of a group. Term 5 over these pixels: sums[j].
template <bool with_sums>
__attribute__((flatten)) void input_gradient(int64_t pixels, int64_t c, const float* dz, const float* x,
                                             const Affine& affine, const float* offset, const float* slope, float* dx,
                                             float* sums) {
    if (with_sums) std::fill_n(sums, c, 0.0f);
    for_pixels(pixels, c, [=](auto block, int64_t begin, int64_t end) {
        constexpr int vectors = block.vectors;
        vfloat mean[vectors], scale[vectors], offsets[vectors], slopes[vectors], sum[vectors];
        for (int v = 0; v < vectors; ++v) {
            mean[v] = block.load(affine.mean, v);
            scale[v] = block.load(affine.scale, v);
            offsets[v] = block.load(offset, v);
            slopes[v] = block.load(slope, v);
            if (with_sums) sum[v] = block.load(sums, v);
        }
        for (int64_t p = begin; p < end; ++p) {
            for (int v = 0; v < vectors; ++v) {
                const vfloat centred = block.load(x + p * c, v) - mean[v];
                const vfloat dxhat = block.load(dz + p * c, v) * scale[v];
                const vfloat result = dxhat - offsets[v] - centred * slopes[v];
                block.store(dx + p * c, v, result);  // 4
                if (with_sums) sum[v] += result;     // 5
            }
        }
        if (with_sums)
            for (int v = 0; v < vectors; ++v) block.store(sums, v, sum[v]);
    });
}

// Terms 4 and 5 over the pixels of a part; 5 in double, and only where totals is not null.
void part_input_gradient(int64_t pixels, int64_t c, const float* dz, const float* x, const Affine& affine,
                         const float* offset, const float* slope, float* dx, double* totals /* (c) */) {
    if (!totals) return input_gradient<false>(pixels, c, dz, x, affine, offset, slope, dx, nullptr);
    float* const sums = scratch(2, static_cast<size_t>(c));
    std::fill_n(totals, c, 0.0);
    for (int64_t p = 0; p < pixels; p += chunk) {
        const int64_t size = std::min(chunk, pixels - p), at = p * c;
        input_gradient<true>(size, c, dz + at, x + at, affine, offset, slope, dx + at, sums);
        for (int64_t j = 0; j < c; ++j) totals[j] += sums[j];
    }
}

// Terms 2 and 5 across the batch: totals (rows, kinds, c) added up over the rows in their order, a block of channels of
// one kind at a time.
void batch_sums(int64_t rows, int64_t kinds, int64_t c, const double* totals, float* const* sums /* (kinds, c) */) {
    constexpr int64_t block = 64;
    const int64_t blocks = (c + block - 1) / block;
    parallel_for(kinds * blocks, 1, [&](int64_t item) {
        const int64_t kind = item / blocks, begin = item % blocks * block, size = std::min(block, c - begin);
        double sum[block] = {};
        const double* row = totals + kind * c + begin;
        for (int64_t k = 0; k < rows; ++k, row += kinds * c)
            for (int64_t j = 0; j < size; ++j) sum[j] += row[j];
        for (int64_t j = 0; j < size; ++j) sums[kind][begin + j] = static_cast<float>(sum[j]);
    }, 0.5 * static_cast<double>(rows * kinds * c));
}

}  // namespace

template <>
void group_norm_forward(const GroupNormShape& s, float eps, const float* x, const float* gamma, const float* beta,
                        float* y, float* mean, float* rstd) {
    if (s.s * s.c == 0) return;
    const Moments moments(s);
    const Parts& parts = moments.parts;
    auto reduce = [&](int64_t i, int64_t k) { moments.measure(x, i, k); };
    auto map = [&](int64_t i, int64_t begin, int64_t end, int64_t next) {
        float *const means = scratch(1, static_cast<size_t>(2 * s.groups)), *const rstds = means + s.groups;
        moments.merge(i, eps, means, rstds);
        if (begin == 0) {
            std::copy_n(means, s.groups, mean + i * s.groups);
            std::copy_n(rstds, s.groups, rstd + i * s.groups);
        }
        const Affine affine(s, means, rstds, gamma);
        const auto apply = s.silu ? normalise<true> : normalise<false>;
        for (int64_t k = end; k-- > begin;) {  // backwards: what was read last is still in the cache
            const int64_t at = (i * s.s + k * parts.pixels) * s.c;
            apply(parts.size(k), s.c, x + at, affine, beta, y + at, x + at + (next - i) * s.s * s.c);
        }
    };
    reduce_then_map(s, parts.count, 0.8, reduce, map);
}

void group_norm_statistics(const GroupNormShape& s, float eps, const float* x, float* mean, float* rstd) {
    if (s.s * s.c == 0) return;
    const Moments moments(s);
    const int64_t parts = moments.parts.count;
    parallel_for(s.n * parts, 1, [&](int64_t item) { moments.measure(x, item / parts, item % parts); });
    for (int64_t i = 0; i < s.n; ++i) moments.merge(i, eps, mean + i * s.groups, rstd + i * s.groups);
}

void group_norm_apply(const GroupNormShape& s, const float* x, const float* gamma, const float* beta,
                      const float* mean, const float* rstd, float* y) {
    if (s.s * s.c == 0) return;
    const Parts parts(s);
    const auto apply = s.silu ? normalise<true> : normalise<false>;
    parallel_for(s.n * parts.count, 1, [&](int64_t item) {
        const int64_t i = item / parts.count, k = item % parts.count, at = (i * s.s + k * parts.pixels) * s.c;
        const Affine affine(s, mean + i * s.groups, rstd + i * s.groups, gamma);
        apply(parts.size(k), s.c, x + at, affine, beta, y + at, x + at);
    });
}

template <>
void group_norm_backward(const GroupNormShape& s, const float* dy, const float* x, const float* gamma,
                         const float* beta, const float* mean, const float* rstd, float* dx, float* dgamma,
                         float* dbeta, float* dx_sum) {
    if (s.c == 0) return;
    const Parts parts(s);
    const int64_t width = s.c / s.groups, kinds = dx_sum ? 3 : 2;
    // Sums of dz, dz xhat and dx of every part: (n, parts, kinds, c).
    auto* const totals = doubles(3, s.n * parts.count * kinds * s.c);
    auto total = [&](int64_t i, int64_t k) { return totals + (i * parts.count + k) * kinds * s.c; };
    auto reduce = [&](int64_t i, int64_t k) {
        const int64_t at = (i * s.s + k * parts.pixels) * s.c;
        const float* const rstds = rstd + i * s.groups;
        const Affine affine(s, mean + i * s.groups, rstds, gamma);
        part_gradients(s, parts.size(k), dy + at, x + at, affine, rstds, beta, dx + at, total(i, k));
    };
    auto map = [&](int64_t i, int64_t begin, int64_t end, int64_t) {
        float *const offset = scratch(1, static_cast<size_t>(2 * s.c)), *const slope = offset + s.c;
        for (int64_t g = 0; g < s.groups; ++g) {
            double sum_dxhat = 0, sum_dxhat_xhat = 0;
            for (int64_t k = 0; k < parts.count; ++k) {
                for (int64_t j = g * width; j < (g + 1) * width; ++j) {
                    sum_dxhat += gamma[j] * total(i, k)[j];  // 3
                    sum_dxhat_xhat += gamma[j] * total(i, k)[s.c + j];
                }
            }
            const double r = rstd[i * s.groups + g], m = static_cast<double>(s.s * width);
            std::fill_n(offset + g * width, width, static_cast<float>(r * sum_dxhat / m));
            std::fill_n(slope + g * width, width, static_cast<float>(r * r * sum_dxhat_xhat / m));
        }
        const Affine affine(s, mean + i * s.groups, rstd + i * s.groups, gamma);
        for (int64_t k = end; k-- > begin;) {
            const int64_t at = (i * s.s + k * parts.pixels) * s.c;
            part_input_gradient(parts.size(k), s.c, (s.silu ? dx : dy) + at, x + at, affine, offset, slope, dx + at,
                                dx_sum ? total(i, k) + 2 * s.c : nullptr);
        }
    };
    reduce_then_map(s, parts.count, 1.6, reduce, map);
    float* const sums[] = {dbeta, dgamma, dx_sum};
    batch_sums(s.n * parts.count, kinds, s.c, totals, sums);
}

}  // namespace pydiff
