// One reverse step of any sampler that is linear in the state, the model's output and earlier outputs: DDPM (Ho, Jain
// and Abbeel 2020, alg. 2), DDIM (Song, Meng and Ermon 2021, eq. 12), and the multistep solvers that keep a history.
//
//     f      = f_uncond + guidance (f_cond - f_uncond)        classifier-free guidance (Ho and Salimans 2022, eq. 6)
//     x0_hat = clip(u x + v f, low, high)
//     x_next = a x + b x0_hat + d f + sum_k c[k] history[k] + s z
//
// Backward, for gradients dx_next and dx0_hat of the loss (history and f_uncond are constants), f' the guided output:
//     1. clip:   dx0 = (b dx_next + dx0_hat) [low <= u x + v f' <= high]    (at a bound the gradient passes)
//     2. state:  dx  = a dx_next + u dx0
//     3. model:  df' = d dx_next + v dx0,   df = guidance df' with guidance, df' without
//
// Array path: pydiff/ops/denoise.py. Reference: pydiff/reference/denoise.py.
#include "kernels.h"
#include "parallel.h"
#include "philox.h"

namespace pydiff {
namespace {

constexpr int64_t tile = 4096;  // elements of one work item; a multiple of every drawn_width

// The row of the table that holds this step.
struct Coefficients {
    explicit Coefficients(const DenoiseTable& t) : Coefficients(t.table + (t.row ? *t.row : 0) * (9 + t.k)) {}
    explicit Coefficients(const float* r)
        : u(r[0]), v(r[1]), low(r[2]), high(r[3]), a(r[4]), b(r[5]), d(r[6]), s(r[7]), guidance(r[8]), c(r + 9) {}
    float u, v, low, high, a, b, d, s, guidance;
    const float* c;
};

// The guided model output at offset `at`, of which `count` elements exist.
inline vfloat guided(const Coefficients& step, const float* f, const float* f_uncond, int64_t at, int64_t count) {
    const vfloat cond = load_upto(f + at, count);
    if (!f_uncond) return cond;
    const vfloat uncond = load_upto(f_uncond + at, count);
    return uncond + step.guidance * (cond - uncond);
}

}  // namespace

template <>
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& table, const float* x, const float* f,
                     const float* f_uncond, const NoiseKey* key, float* x_next, float* x0_hat) {
    const Coefficients coefficients(table);
    parallel_tiles(n, size, tile, key ? 2.0 : 0.4, [&](int64_t i, int64_t begin, int64_t end) {
        const Coefficients step = coefficients;  // a copy of this thread's, which stays in registers
        // The update at offset `at`, of which `count` elements exist; next_noise adds s z to x_next.
        const auto update = [&](int64_t at, int64_t count, auto&& next_noise) {
            const vfloat xs = load_upto(x + at, count), fs = guided(step, f, f_uncond, at, count);
            const vfloat x0 = at_most(at_least(step.u * xs + step.v * fs, step.low), step.high);
            vfloat next = step.a * xs + step.b * x0 + step.d * fs;
            for (int64_t h = 0; h < table.k; ++h) next += step.c[h] * load_upto(table.history[h] + at, count);
            next_noise(next);
            store_upto(x0_hat + at, x0, count);
            store_upto(x_next + at, next, count);
        };
        if (!key) {
            for (int64_t e = begin; e < end; e += simd_width) update(i * size + e, end - e, [](vfloat&) {});
            return;
        }
        for (int64_t e = begin; e < end; e += drawn_width) {
            vfloat z[4];
            normals(*key, i, e, z);
            for (int64_t k = 0, at = e; k < 4 && at < end; ++k, at += simd_width)
                update(i * size + at, end - at, [&](vfloat& next) { next += step.s * z[k]; });
        }
    });
}

template <>
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& table, const float* dx_next, const float* dx0_hat,
                      const float* x, const float* f, const float* f_uncond, float* dx, float* df) {
    const Coefficients coefficients(table);
    const float through_guidance = f_uncond ? coefficients.guidance : 1.0f;
    parallel_tiles(n, size, tile, 0.4, [&](int64_t i, int64_t begin, int64_t end) {
        const Coefficients step = coefficients;
        for (int64_t at = i * size + begin; at < i * size + end; at += simd_width) {
            const int64_t count = i * size + end - at;
            const vfloat xs = load_upto(x + at, count), fs = guided(step, f, f_uncond, at, count);
            const vfloat x0 = step.u * xs + step.v * fs, dnext = load_upto(dx_next + at, count);
            const vint passes = (x0 >= step.low) & (x0 <= step.high);
            const vfloat dx0 = passes ? step.b * dnext + load_upto(dx0_hat + at, count) : vfloat{};  // 1
            store_upto(dx + at, step.a * dnext + step.u * dx0, count);                               // 2
            store_upto(df + at, through_guidance * (step.d * dnext + step.v * dx0), count);          // 3
        }
    });
}

}  // namespace pydiff
