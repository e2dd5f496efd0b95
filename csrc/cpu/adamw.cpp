// AdamW (Loshchilov and Hutter 2019, alg. 2, with the learning rate on both terms) and an exponential moving average of
// the parameters, in one pass over flat buffers of all parameters:
//
//     g'  = g min(1, clip / (norm + 1e-6))              clipping by the global norm; 0 for none
//     m   = beta1 m + (1 - beta1) g'
//     v   = beta2 v + (1 - beta2) g'^2
//     p   = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) - lr weight_decay p
//     ema = ema_decay ema + (1 - ema_decay) p
//
// A gradient whose norm is not finite changes nothing.
//
// The step moves at most five arrays through memory once and computes little: memory bandwidth is its limit, and one
// pass is what matters. Array path: pydiff/ops/adamw.py. Reference: pydiff/reference/adamw.py.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd_math.h"

namespace pydiff {
namespace {

constexpr int64_t block = 16384;  // elements of one work item

typedef double vdouble __attribute__((vector_size(32)));
typedef float vfloat4 __attribute__((vector_size(16)));

// Four sums, always the same four: the instruction set does not change a bit of the result.
double block_squares(int64_t size, const float* g) {
    vdouble sum[2] = {};
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        for (int k = 0; k < 2; ++k) {
            vfloat4 part;
            std::memcpy(&part, g + i + 4 * k, sizeof part);
            const vdouble wide = __builtin_convertvector(part, vdouble);
            sum[k] += wide * wide;  // exact: 24-bit factors
        }
    }
    const vdouble both = sum[0] + sum[1];
    double total = (both[0] + both[1]) + (both[2] + both[3]);
    for (; i < size; ++i) total += static_cast<double>(g[i]) * g[i];
    return total;
}

}  // namespace

void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema, bfloat16*) {
    const double lr = step.schedule[0], t = step.schedule[1], ema_decay = step.schedule[2], clip = step.schedule[3];
    if (step.norm2 && !std::isfinite(*step.norm2)) return;
    const double grad_scale = step.norm2 && clip > 0 ? std::min(1.0, clip / (std::sqrt(*step.norm2) + 1e-6)) : 1.0;
    const double bias_correction1 = 1.0 - std::pow(step.beta1, t), bias_correction2 = 1.0 - std::pow(step.beta2, t);
    const auto single = [](double x) { return static_cast<float>(x); };
    const float rate = single(lr / bias_correction1), decay = single(lr * step.weight_decay);
    // a factor instead of a quotient, so that an element costs one division
    const float root_correction = single(1.0 / std::sqrt(bias_correction2)), eps = single(step.eps);
    const float old1 = single(step.beta1), new1 = single(1.0 - step.beta1), scale = single(grad_scale);
    const float old2 = single(step.beta2), new2 = single(1.0 - step.beta2);
    const float old_ema = single(ema_decay), new_ema = single(1.0 - ema_decay);
    parallel_for((size + block - 1) / block, 1, [&](int64_t item) {
        const int64_t end = item * block + block < size ? item * block + block : size;
        for (int64_t i = item * block; i < end; i += simd_width) {
            const int64_t count = end - i;
            const vfloat gs = scale * load_upto(g + i, count);
            const vfloat ms = old1 * load_upto(m + i, count) + new1 * gs;
            const vfloat vs = old2 * load_upto(v + i, count) + new2 * (gs * gs);
            const vfloat old = load_upto(p + i, count);
            // Not old * (1 - decay): float would round 1 - 1e-6 to a decay that is off by per cents.
            const vfloat ps = old - (rate * ms / (sqrt(vs) * root_correction + eps) + decay * old);
            store_upto(m + i, ms, count);
            store_upto(v + i, vs, count);
            store_upto(p + i, ps, count);
            if (ema) store_upto(ema + i, old_ema * load_upto(ema + i, count) + new_ema * ps, count);
        }
    });
}

void squared_norm(int64_t size, const float* g, double* norm2) {
    const int64_t blocks = (size + block - 1) / block;
    std::vector<double> sums(static_cast<size_t>(blocks));
    parallel_for(blocks, 1, [&](int64_t item) {
        const int64_t begin = item * block;
        sums[static_cast<size_t>(item)] = block_squares(begin + block < size ? block : size - begin, g + begin);
    });
    *norm2 = 0;
    for (const double sum : sums) *norm2 += sum;
}

}  // namespace pydiff
