// Dropout (Srivastava et al. 2014, section 4) with masks made on the spot:
//
//     y = m x,   m = 1 / (1 - p) where u >= p, else 0        u in [0, 1) from philox.h
//
// u is a function of (seed, purpose, sample, step, element), so the mask is never stored: backward draws it again.
// Backward, m being a constant:
//     dx = m dy, the same function
//
// Array path: pydiff/ops/dropout.py. Reference: pydiff/reference/dropout.py. CPU: csrc/cpu/dropout.cpp.
//
// Layout: (n, size), one launch. A row of the grid is a sample; a thread makes the elements of one 16-byte access, for
// which it draws one block of four words (float32) or two (bfloat16).
#include "philox.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int block_threads = 256;
template <class T>
constexpr int width = 16 / int(sizeof(T));  // elements of an access

// What a word of the generator does to its element.
__device__ __forceinline__ float mask(uint32_t word, float p, float scale) {
    return float(word >> 8) * 0x1p-24f >= p ? scale : 0.0f;
}

// As the equation says, one element a thread: what the fast kernel is compared with.
template <class T>
__global__ void dropout_naive_kernel(int64_t n, int64_t size, const T* x, float p, float scale, NoiseKey key, T* y) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const uint4 w = philox4x32(key.seed, make_uint4(uint32_t(e / 4), key.step[i], key.sample[i], key.purpose));
        const uint32_t word = e % 4 == 0 ? w.x : e % 4 == 1 ? w.y : e % 4 == 2 ? w.z : w.w;
        y[i * size + e] = from_float<T>(to_float(x[i * size + e]) * mask(word, p, scale));
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    dropout_kernel(int64_t n, int64_t size, bool aligned, const T* __restrict__ x, float p, float scale, NoiseKey key,
                   T* __restrict__ y) {
    constexpr int count = width<T>;
    const int64_t e = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * count;
    if (e >= size) return;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const int64_t at = i * size + e;
        float xs[count];
        load_upto(xs, x + at, size - e, aligned);
#pragma unroll
        for (int b = 0; b < count / 4; ++b) {
            const uint32_t block = uint32_t(e / 4) + b;
            const uint4 w = philox4x32(key.seed, make_uint4(block, key.step[i], key.sample[i], key.purpose));
            xs[4 * b] *= mask(w.x, p, scale), xs[4 * b + 1] *= mask(w.y, p, scale);
            xs[4 * b + 2] *= mask(w.z, p, scale), xs[4 * b + 3] *= mask(w.w, p, scale);
        }
        store_upto(y + at, xs, size - e, aligned);
    }
}

}  // namespace

template <class T>
void dropout_forward(int64_t n, int64_t size, const T* x, float p, float scale, const NoiseKey& key, T* y,
             cudaStream_t stream) {
    if (n == 0 || size == 0) return;
    if (use_naive)
        return launch<dropout_naive_kernel<T>>(rows_grid(n, size, block_threads), dim3(block_threads), 0, stream, n,
                                               size, x, p, scale, key, y);
    const bool aligned = size % width<T> == 0 && aligned16({x, y});
    launch<dropout_kernel<T>>(rows_grid(n, (size + width<T> - 1) / width<T>, block_threads), dim3(block_threads), 0,
                              stream, n, size, aligned, x, p, scale, key, y);
}

template void dropout_forward<float>(int64_t, int64_t, const float*, float, float, const NoiseKey&, float*, cudaStream_t);
template void dropout_forward<bfloat16>(int64_t, int64_t, const bfloat16*, float, float, const NoiseKey&, bfloat16*,
                                cudaStream_t);

}  // namespace pydiff
