// Every form of ldmatrix, register by register: 1, 2 and 4 matrices, plain and transposed, from 32 rows of 16 bytes.
#include "../ptx.h"
#include "kernels.h"

namespace pydiff::selftest {

// Appends the lane's registers to out, one row of 32 lanes a register.
template <bool transposed, int count>
__device__ inline void load_and_put(const __nv_bfloat16* row, uint32_t* out, int& filled) {
    uint32_t r[count];
    load_matrix<transposed>(r, row);
    for (int i = 0; i < count; ++i) out[filled++ * 32 + int(threadIdx.x)] = r[i];
}

__global__ void fragments_kernel(const __nv_bfloat16* __restrict__ x, uint32_t* __restrict__ out) {
    SHARED_ALIGNED(16, __nv_bfloat16, rows, [32][8]);  // matrix m is rows 8 m .. 8 m + 7
    const int lane = int(threadIdx.x);
    for (int i = 0; i < 8; ++i) rows[lane][i] = x[lane * 8 + i];
    __syncwarp();
    const __nv_bfloat16* row = &rows[lane][0];
    int filled = 0;
    load_and_put<false, 1>(row, out, filled);
    load_and_put<false, 2>(row, out, filled);
    load_and_put<false, 4>(row, out, filled);
    load_and_put<true, 1>(row, out, filled);
    load_and_put<true, 2>(row, out, filled);
    load_and_put<true, 4>(row, out, filled);
}

void fragments(const uint16_t* x, uint32_t* out) {
    launch<fragments_kernel>(dim3(1), dim3(32), 0, nullptr, reinterpret_cast<const __nv_bfloat16*>(x), out);
}

}  // namespace pydiff::selftest
