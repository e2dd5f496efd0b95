// sums[b] = sum of x[64 b .. 64 b + 63]: a tree in shared memory, half as many threads at every step.
#include "../device.h"
#include "kernels.h"

namespace pydiff::selftest {

template <Plant plant>
__global__ void block_sum_kernel(const float* __restrict__ x, float* __restrict__ sums, int n) {
    SHARED(float, partial, [sum_threads]);
    const int t = int(threadIdx.x), i = int(blockIdx.x) * sum_threads + t;
    const float value = i < n ? x[i] : 0.0f;

    if (plant == Plant::off_by_one) {
        partial[t + 1] = value;
    } else if (plant == Plant::overrun) {
        float* p = partial;
        p[t + 1] = value;
    } else if (plant != Plant::uninitialised || i < n) {
        partial[t] = value;
    }
    if (plant == Plant::divergent_barrier && t < 32)
        __syncthreads();
    else
        __syncthreads();

    for (int half = sum_threads / 2; half > 0; half /= 2) {
        if (t < half) partial[t] += partial[t + half];
        if (plant != Plant::missing_barrier) __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = partial[0];
}

template <Plant plant>
static void run_block_sum(const float* x, float* sums, int n) {
    const dim3 blocks((n + sum_threads - 1) / sum_threads);
    launch<block_sum_kernel<plant>>(blocks, dim3(sum_threads), 0, nullptr, x, sums, n);
}

void block_sum(const float* x, float* sums, int n, Plant plant) {
    switch (plant) {
        case Plant::missing_barrier: return run_block_sum<Plant::missing_barrier>(x, sums, n);
        case Plant::divergent_barrier: return run_block_sum<Plant::divergent_barrier>(x, sums, n);
        case Plant::off_by_one: return run_block_sum<Plant::off_by_one>(x, sums, n);
        case Plant::overrun: return run_block_sum<Plant::overrun>(x, sums, n);
        case Plant::uninitialised: return run_block_sum<Plant::uninitialised>(x, sums, n);
        default: return run_block_sum<Plant::none>(x, sums, n);
    }
}

}  // namespace pydiff::selftest
