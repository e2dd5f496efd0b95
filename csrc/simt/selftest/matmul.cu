// c = a b on tensor cores, one warp to a tile of 16 x 8: bfloat16 through ldmatrix, tf32 straight from global memory.
#include "../ptx.h"
#include "kernels.h"

namespace pydiff::selftest {

// Writes a lane's four sums; the C fragment of mma.h.
__device__ inline void write_tile(float* c, const float (&sum)[4], int m, int n, int row0, int column0, int lane) {
    for (int i = 0; i < 4; ++i) {
        const int row = row0 + lane / 4 + (i & 2 ? 8 : 0), column = column0 + 2 * (lane % 4) + (i & 1);
        if (row < m && column < n) c[row * n + column] = sum[i];
    }
}

template <Plant plant>
__global__ void matmul_bf16_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                                   int m, int n, int k) {
    SHARED_ALIGNED(16, __nv_bfloat16, a_tile, [16][24]);  // 8 columns of padding: rows start in different banks
    SHARED_ALIGNED(16, __nv_bfloat16, b_tile, [16][8]);
    const int lane = int(threadIdx.x), row0 = 16 * int(blockIdx.y), column0 = 8 * int(blockIdx.x);
    float sum[4] = {};
    for (int k0 = 0; k0 < k; k0 += 16) {
        for (int e = lane; e < 16 * 16; e += 32) {
            const int row = row0 + e / 16, column = k0 + e % 16;
            a_tile[e / 16][e % 16] = __float2bfloat16(row < m && column < k ? a[row * k + column] : 0.0f);
        }
        for (int e = lane; e < 16 * 8; e += 32) {
            const int row = k0 + e / 8, column = column0 + e % 8;
            b_tile[e / 8][e % 8] = __float2bfloat16(row < k && column < n ? b[row * n + column] : 0.0f);
        }
        __syncwarp();
        uint32_t fa[4], fb[2];
        load_matrix(fa, &a_tile[lane % 16][lane / 16 * 8]);
        load_matrix<true>(fb, &b_tile[lane % 16][0]);
        if (plant == Plant::wrong_fragment) {
            const uint32_t swapped = fa[1];
            fa[1] = fa[2], fa[2] = swapped;
        }
        mma_bf16(sum, fa, fb, sum);
        __syncwarp();
    }
    write_tile(c, sum, m, n, row0, column0, lane);
}

template <Plant plant>
__global__ void matmul_tf32_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                                   int m, int n, int k) {
    const int lane = int(threadIdx.x), row0 = 16 * int(blockIdx.y), column0 = 8 * int(blockIdx.x);
    const int group = lane / 4, t = lane % 4;
    float sum[4] = {};
    for (int k0 = 0; k0 < k; k0 += 8) {
        uint32_t fa[4], fb[2];
        for (int i = 0; i < 4; ++i) {
            const int row = row0 + group + (i & 1 ? 8 : 0), column = k0 + t + (i & 2 ? 4 : 0);
            fa[i] = to_tf32(row < m && column < k ? a[row * k + column] : 0.0f);
        }
        for (int i = 0; i < 2; ++i) {
            const int row = k0 + t + (plant == Plant::wrong_fragment ? 0 : 4 * i), column = column0 + group;
            fb[i] = to_tf32(row < k && column < n ? b[row * n + column] : 0.0f);
        }
        mma_tf32(sum, fa, fb, sum);
    }
    write_tile(c, sum, m, n, row0, column0, lane);
}

static dim3 tiles_of(int m, int n) { return dim3((n + 7) / 8, (m + 15) / 16); }

void matmul_bf16(const float* a, const float* b, float* c, int m, int n, int k, Plant plant) {
    if (plant == Plant::wrong_fragment)
        launch<matmul_bf16_kernel<Plant::wrong_fragment>>(tiles_of(m, n), dim3(32), 0, nullptr, a, b, c, m, n, k);
    else
        launch<matmul_bf16_kernel<Plant::none>>(tiles_of(m, n), dim3(32), 0, nullptr, a, b, c, m, n, k);
}

void matmul_tf32(const float* a, const float* b, float* c, int m, int n, int k, Plant plant) {
    if (plant == Plant::wrong_fragment)
        launch<matmul_tf32_kernel<Plant::wrong_fragment>>(tiles_of(m, n), dim3(32), 0, nullptr, a, b, c, m, n, k);
    else
        launch<matmul_tf32_kernel<Plant::none>>(tiles_of(m, n), dim3(32), 0, nullptr, a, b, c, m, n, k);
}

}  // namespace pydiff::selftest
