// One row of results for every way that lanes exchange values, and one total for every atomic.
#include "../device.h"
#include "kernels.h"

namespace pydiff::selftest {

template <Plant plant>
__global__ void collectives_kernel(const int* __restrict__ x, int* __restrict__ rows) {
    SHARED(int, box, [32]);
    const unsigned all = 0xFFFFFFFFu;
    const int lane = int(threadIdx.x), value = x[lane];
    const auto put = [&](int row, int result) { rows[row * 32 + lane] = result; };

    if (plant == Plant::own_lane_missing) __syncwarp(0xFFFFu);
    if (plant == Plant::divergent_warp) {
        if (lane < 16)
            __ballot_sync(all, 1);
        else
            __shfl_sync(all, value, 0);
    }
    if (plant == Plant::deadlock) {
        if (lane < 16)
            __syncwarp();
        else
            __syncthreads();
    }
    put(0, __shfl_sync(all, value, 7 * lane + 3));
    put(1, __shfl_sync(all, value, 5, 8));
    put(2, __shfl_up_sync(all, value, 3));
    put(3, __shfl_up_sync(all, value, 3, 8));
    put(4, __shfl_down_sync(all, value, 5));
    put(5, __shfl_down_sync(all, value, 5, 16));
    put(6, __shfl_xor_sync(all, value, 5));
    put(7, __shfl_xor_sync(all, value, 9, 8));  // reaches earlier segments, not later ones
    put(8, int(__ballot_sync(all, value % 2)));
    put(9, __any_sync(all, value > 90));
    put(10, __all_sync(all, value >= 0));
    const unsigned half = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;  // the halves meet independently
    put(11, __shfl_xor_sync(half, value, 1));
    box[lane] = value;
    __syncwarp();
    put(12, box[31 - lane]);
    int vote = 0;
    if (lane < 10) vote = int(__ballot_sync(0x3FFu, value % 2));
    put(13, vote);
    if (lane >= 20) return;
    put(14, int(__ballot_sync(all, 1)));  // lanes that have ended are not waited for
}

void collectives(const int* x, int* rows, Plant plant) {
    switch (plant) {
        case Plant::own_lane_missing:
            return launch<collectives_kernel<Plant::own_lane_missing>>(dim3(1), dim3(32), 0, nullptr, x, rows);
        case Plant::divergent_warp:
            return launch<collectives_kernel<Plant::divergent_warp>>(dim3(1), dim3(32), 0, nullptr, x, rows);
        case Plant::deadlock:
            return launch<collectives_kernel<Plant::deadlock>>(dim3(1), dim3(32), 0, nullptr, x, rows);
        default: return launch<collectives_kernel<Plant::none>>(dim3(1), dim3(32), 0, nullptr, x, rows);
    }
}

// totals: sum, maximum, unsigned sum, and the product of signs, which has no atomic and takes a CAS loop.
__global__ void atomics_kernel(const int* __restrict__ x, int* totals, float* sum, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    atomicAdd(&totals[0], x[i]);
    atomicMax(&totals[1], x[i]);
    atomicAdd(reinterpret_cast<unsigned*>(&totals[2]), unsigned(x[i]));
    int seen = totals[3], before;
    do {
        before = seen;
        seen = atomicCAS(&totals[3], before, x[i] < 0 ? -before : before);
    } while (seen != before);
    atomicAdd(sum, 0.5f);
}

void atomics(const int* x, int* totals, float* sum, int n) {
    launch<atomics_kernel>(dim3((n + 63) / 64), dim3(64), 0, nullptr, x, totals, sum, n);
}

}  // namespace pydiff::selftest
