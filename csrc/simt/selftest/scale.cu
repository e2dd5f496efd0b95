// y = factor x: four elements to a thread in accesses of 16 bytes, then the last n % 4 one by one.
#include "../device.h"
#include "kernels.h"

namespace pydiff::selftest {

template <Plant plant>
__global__ void scale_kernel(const float* __restrict__ x, float* __restrict__ y, int n, float factor) {
    const int thread = int(blockIdx.x * blockDim.x + threadIdx.x), shift = plant == Plant::misaligned ? 1 : 0;
    const int i = 4 * thread + shift;
    if (i + 3 < n) {
        float4 v = load_vector<float4>(x + i);
        v.x *= factor, v.y *= factor, v.z *= factor, v.w *= factor;
        store_vector(y + i, v);
    } else if (plant != Plant::missed_tail) {
        const int end = plant == Plant::past_end ? n + 1 : n;
        for (int j = i; j < end; ++j) y[j] = factor * (j < n ? x[j] : 0.0f);
    }
}

template <Plant plant>
static void run_scale(const float* x, float* y, int n, float factor) {
    launch<scale_kernel<plant>>(dim3(n / 128 + 1), dim3(32), 0, nullptr, x, y, n, factor);
}

void scale(const float* x, float* y, int n, float factor, Plant plant) {
    switch (plant) {
        case Plant::missed_tail: return run_scale<Plant::missed_tail>(x, y, n, factor);
        case Plant::misaligned: return run_scale<Plant::misaligned>(x, y, n, factor);
        case Plant::past_end: return run_scale<Plant::past_end>(x, y, n, factor);
        default: return run_scale<Plant::none>(x, y, n, factor);
    }
}

}  // namespace pydiff::selftest
