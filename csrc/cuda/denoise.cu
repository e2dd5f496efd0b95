#include <stdexcept>

#include "kernels.h"

namespace pydiff {

template <class T>
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const T* f,
                     const T* f_uncond , const NoiseKey* key , float* x_next,
                     float* x0_hat, cudaStream_t stream) {
    throw std::runtime_error("denoise_forward is not written yet");
}
template void denoise_forward<float>(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const float* f,
                     const float* f_uncond , const NoiseKey* key , float* x_next,
                     float* x0_hat, cudaStream_t stream);
template void denoise_forward<bfloat16>(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const bfloat16* f,
                     const bfloat16* f_uncond , const NoiseKey* key , float* x_next,
                     float* x0_hat, cudaStream_t stream);

template <class T>
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const T* f, const T* f_uncond , float* dx, T* df,
                      cudaStream_t stream) {
    throw std::runtime_error("denoise_backward is not written yet");
}
template void denoise_backward<float>(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const float* f, const float* f_uncond , float* dx, float* df,
                      cudaStream_t stream);
template void denoise_backward<bfloat16>(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const bfloat16* f, const bfloat16* f_uncond , float* dx, bfloat16* df,
                      cudaStream_t stream);

}  // namespace pydiff
