// AdamW (Loshchilov and Hutter 2019, alg. 2, with the learning rate on both terms) and an exponential moving average of
// the parameters, in one pass over flat buffers of all parameters:
//
//     g'  = g min(1, clip / (norm + 1e-6))              clipping by the global norm; 0 for none
//     m   = beta1 m + (1 - beta1) g'
//     v   = beta2 v + (1 - beta2) g'^2
//     p   = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) - lr weight_decay p
//     ema = ema_decay ema + (1 - ema_decay) p           low = p in bfloat16
//
// lr, t, ema_decay, clip and the square of the norm are read from memory when the kernel runs: the host waits for
// nothing, and a recorded step can be played again with other values. A norm that is not finite changes nothing.
//
// Array path: pydiff/ops/adamw.py. Reference: pydiff/reference/adamw.py. CPU: csrc/cpu/adamw.cpp.
//
// Layout: flat arrays. A parameter costs 38 bytes of memory traffic (p, m, v and ema read and written, g read, low
// written) and some thirty operations, so only bytes count. A thread takes 4 neighbours, 16 bytes of every float array
// and 8 of low: each access of a warp is one unbroken stretch. As many blocks as the device holds at a time step over
// the arrays together; with 64 registers that is 4 on a multiprocessor, whose loads have 80 KB under way.
//
// The norm: sums of chunks of fixed size, in double, added in a fixed order. A float's square is exact in double.
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "vector.h"

namespace pydiff {
namespace {

constexpr int block_threads = 256;
constexpr int each = 4;                                      // elements of a thread at a time
constexpr int resident_blocks = 4;                           // on a multiprocessor
constexpr int rounds = 8;                                    // of a thread of the norm
constexpr int64_t chunk = block_threads * each * rounds;     // elements of a block of the norm

// ---- the step ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ bool goes_on(const AdamWStep& step) { return !step.norm2 || std::isfinite(*step.norm2); }

// g' / g
__device__ __forceinline__ double clipping(const AdamWStep& step) {
    const double clip = step.schedule[3];
    if (!step.norm2 || !(clip > 0)) return 1.0;
    const double scale = clip / (std::sqrt(*step.norm2) + 1e-6);
    return scale < 1.0 ? scale : 1.0;
}

// As the equations say, in double, one element a thread: what the fast kernel is compared with.
__global__ void adamw_naive_kernel(int64_t size, AdamWStep step, float* p, const float* g, float* m, float* v,
                                   float* ema, bfloat16* low) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size || !goes_on(step)) return;
    const double lr = step.schedule[0], t = step.schedule[1], ema_decay = step.schedule[2];
    const double gs = clipping(step) * g[i];
    const double ms = step.beta1 * m[i] + (1.0 - step.beta1) * gs;
    const double vs = step.beta2 * v[i] + (1.0 - step.beta2) * gs * gs;
    const double m_hat = ms / (1.0 - std::pow(step.beta1, t)), v_hat = vs / (1.0 - std::pow(step.beta2, t));
    const double ps = p[i] - lr * (m_hat / (std::sqrt(v_hat) + step.eps) + step.weight_decay * p[i]);
    m[i] = float(ms), v[i] = float(vs), p[i] = float(ps);
    if (ema) ema[i] = float(ema_decay * ema[i] + (1.0 - ema_decay) * ps);
    if (low) low[i] = __float2bfloat16(p[i]);
}

// What all elements have in common, made in double and rounded once.
struct Coefficients {
    float scale, old1, new1, old2, new2, rate, root_correction, eps, decay, old_ema, new_ema;
};

__device__ Coefficients coefficients(const AdamWStep& step) {
    const double lr = step.schedule[0], t = step.schedule[1], ema_decay = step.schedule[2];
    // 1 - beta^t: nothing cancels, however close to 1 beta is
    const double correction1 = -std::expm1(t * std::log(step.beta1));
    const double correction2 = -std::expm1(t * std::log(step.beta2));
    Coefficients c;
    c.scale = float(clipping(step));
    c.old1 = float(step.beta1), c.new1 = float(1.0 - step.beta1);
    c.old2 = float(step.beta2), c.new2 = float(1.0 - step.beta2);
    // a factor instead of a quotient, so that an element costs one division
    c.rate = float(lr / correction1), c.root_correction = float(1.0 / std::sqrt(correction2)), c.eps = float(step.eps);
    c.decay = float(lr * step.weight_decay);
    c.old_ema = float(ema_decay), c.new_ema = float(1.0 - ema_decay);
    return c;
}

struct Elements {
    float p[each], g[each], m[each], v[each], ema[each];
};

// ema and low may be null.
__global__ void __launch_bounds__(block_threads, resident_blocks)
    adamw_kernel(int64_t size, bool aligned, AdamWStep step, float* __restrict__ p, const float* __restrict__ g,
                 float* __restrict__ m, float* __restrict__ v, float* __restrict__ ema, bfloat16* __restrict__ low) {
    SHARED(Coefficients, shared, [1]);
    Elements x;
    const auto load_elements = [&](int64_t i) {
        load_upto(x.p, p + i, size - i, aligned);
        load_upto(x.g, g + i, size - i, aligned);
        load_upto(x.m, m + i, size - i, aligned);
        load_upto(x.v, v + i, size - i, aligned);
        if (ema) load_upto(x.ema, ema + i, size - i, aligned);
    };
    const int64_t stride = int64_t(gridDim.x) * block_threads * each;
    int64_t i = each * (int64_t(blockIdx.x) * block_threads + threadIdx.x);
    load_elements(i);  // on their way while one thread does the logarithms; nothing is loaded behind the end
    if (!goes_on(step)) return;
    if (threadIdx.x == 0) shared[0] = coefficients(step);
    __syncthreads();
    const Coefficients c = shared[0];
    while (i < size) {
#pragma unroll
        for (int k = 0; k < each; ++k) {
            const float gs = c.scale * x.g[k];
            x.m[k] = c.old1 * x.m[k] + c.new1 * gs;
            x.v[k] = c.old2 * x.v[k] + c.new2 * (gs * gs);
            // Not p * (1 - decay): float would round 1 - 1e-6 to a decay that is off by per cents.
            x.p[k] -= c.rate * x.m[k] / (std::sqrt(x.v[k]) * c.root_correction + c.eps) + c.decay * x.p[k];
        }
        store_upto(m + i, x.m, size - i, aligned);
        store_upto(v + i, x.v, size - i, aligned);
        store_upto(p + i, x.p, size - i, aligned);
        if (low) store_upto(low + i, x.p, size - i, aligned);
        if (ema) {
#pragma unroll
            for (int k = 0; k < each; ++k) x.ema[k] = c.old_ema * x.ema[k] + c.new_ema * x.p[k];
            store_upto(ema + i, x.ema, size - i, aligned);
        }
        i += stride;
        if (i < size) load_elements(i);
    }
}

// ---- the norm ----------------------------------------------------------------------------------------------------

__global__ void squared_norm_naive_kernel(int64_t size, const float* g, double* norm2) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += double(g[i]) * double(g[i]);
    *norm2 = sum;
}

// The sum of x over the block, in thread 0.
__device__ __forceinline__ double block_sum(double x) {
    constexpr int warps = block_threads / 32;
    SHARED(double, sums, [warps]);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, lanes);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int w = 0; w < warps; ++w) sum += sums[w];
    return sum;
}

// sums[b] = sum of g^2 over chunk b
__global__ void __launch_bounds__(block_threads, resident_blocks)
    squares_kernel(int64_t size, bool aligned, const float* __restrict__ g, double* __restrict__ sums) {
    float x[rounds][each];
#pragma unroll
    for (int r = 0; r < rounds; ++r) {
        const int64_t i = int64_t(blockIdx.x) * chunk + (r * block_threads + int(threadIdx.x)) * each;
        load_upto(x[r], g + i, size - i, aligned);
    }
    double sum[each] = {};  // several, so that no addition waits for the one before
#pragma unroll
    for (int r = 0; r < rounds; ++r)
#pragma unroll
        for (int k = 0; k < each; ++k) sum[k] += double(x[r][k]) * double(x[r][k]);
    const double total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(block_threads)
    add_chunks_kernel(int64_t chunks, const double* __restrict__ sums, double* __restrict__ norm2) {
    double sum = 0;
#pragma unroll 8
    for (int64_t b = threadIdx.x; b < chunks; b += block_threads) sum += sums[b];
    const double total = block_sum(sum);
    if (threadIdx.x == 0) *norm2 = total;
}

int64_t chunks_of(int64_t size) { return std::max<int64_t>((size + chunk - 1) / chunk, 1); }  // an empty one gives 0

}  // namespace

void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema, bfloat16* low,
           cudaStream_t stream) {
    if (size == 0) return;
    if (use_naive)
        return launch<adamw_naive_kernel>(rows_grid(1, size, block_threads), dim3(block_threads), 0, stream, size, step,
                                          p, g, m, v, ema, low);
    const int64_t blocks = (size + block_threads * each - 1) / (block_threads * each);
    const int64_t most = int64_t(resident_blocks) * multiprocessors();
    launch<adamw_kernel>(dim3(unsigned(std::min(blocks, most))), dim3(block_threads), 0, stream, size,
                         aligned16({p, g, m, v, ema, low}), step, p, g, m, v, ema, low);
}

size_t squared_norm_workspace(int64_t size) { return chunks_of(size) > 1 ? chunks_of(size) * sizeof(double) : 0; }

void squared_norm(int64_t size, const float* g, double* norm2, void* workspace, cudaStream_t stream) {
    if (use_naive) return launch<squared_norm_naive_kernel>(dim3(1), dim3(1), 0, stream, size, g, norm2);
    const int64_t chunks = chunks_of(size);
    double* sums = chunks > 1 ? static_cast<double*>(workspace) : norm2;
    launch<squares_kernel>(dim3(unsigned(chunks)), dim3(block_threads), 0, stream, size, aligned16({g}), g, sums);
    if (chunks > 1)
        launch<add_chunks_kernel>(dim3(1), dim3(block_threads), 0, stream, chunks, static_cast<const double*>(sums),
                                  norm2);
}

}  // namespace pydiff
