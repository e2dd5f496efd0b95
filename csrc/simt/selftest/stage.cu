// Reverses every tile of 64 elements: while one buffer is read, cp.async fills the other. One block works on all tiles.
#include "../ptx.h"
#include "kernels.h"

namespace pydiff::selftest {

constexpr int tile = 64;

template <Plant plant>
__global__ void stage_kernel(const float* __restrict__ x, float* __restrict__ y, int n) {
    DYNAMIC_SHARED(float, buffers);  // (2, tile)
    const int t = int(threadIdx.x), tiles = (n + tile - 1) / tile;
    const auto fetch = [&](int k) {  // beyond the end of x: zeros
        const int i = k * tile + t;
        copy_async<4>(buffers + k % 2 * tile + t, i < n ? x + i : x, i < n ? 4u : 0u);
    };
    fetch(0);
    commit_copies();
    for (int k = 0; k < tiles; ++k) {
        if (k + 1 < tiles) fetch(k + 1);
        commit_copies();  // an empty group keeps the count right in the last round
        if (plant == Plant::late_wait)
            wait_copies<2>();
        else if (plant != Plant::missing_wait)
            wait_copies<1>();
        __syncthreads();
        const int reversed = k * tile + tile - 1 - t;
        if (reversed < n) y[reversed] = buffers[k % 2 * tile + t];
        __syncthreads();  // before the next round fills this buffer
    }
    if (plant != Plant::missing_wait) wait_copies<0>();
}

template <Plant plant>
static void run_stage(const float* x, float* y, int n) {
    launch<stage_kernel<plant>>(dim3(1), dim3(tile), 2 * tile * sizeof(float), nullptr, x, y, n);
}

void stage(const float* x, float* y, int n, Plant plant) {
    switch (plant) {
        case Plant::missing_wait: return run_stage<Plant::missing_wait>(x, y, n);
        case Plant::late_wait: return run_stage<Plant::late_wait>(x, y, n);
        default: return run_stage<Plant::none>(x, y, n);
    }
}

}  // namespace pydiff::selftest
