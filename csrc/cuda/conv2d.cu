#include <stdexcept>

#include "kernels.h"

namespace pydiff {

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const float* bias , T* y,
                    cudaStream_t stream) {
    throw std::runtime_error("conv2d_forward is not written yet");
}
template void conv2d_forward<float>(const Conv2dShape& s, const float* x, const float* w, const float* bias , float* y,
                    cudaStream_t stream);
template void conv2d_forward<bfloat16>(const Conv2dShape& s, const bfloat16* x, const bfloat16* w, const float* bias , bfloat16* y,
                    cudaStream_t stream);

template <class T>
void conv2d_backward_input(const Conv2dShape& s, const T* dy, const T* w, T* dx, cudaStream_t stream) {
    throw std::runtime_error("conv2d_backward_input is not written yet");
}
template void conv2d_backward_input<float>(const Conv2dShape& s, const float* dy, const float* w, float* dx, cudaStream_t stream);
template void conv2d_backward_input<bfloat16>(const Conv2dShape& s, const bfloat16* dy, const bfloat16* w, bfloat16* dx, cudaStream_t stream);

size_t conv2d_backward_weight_workspace(const Conv2dShape& ) { return 0; }

template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const T* dy, const T* x, float* dw, float* dbias ,
                            void* workspace, cudaStream_t stream) {
    throw std::runtime_error("conv2d_backward_weight is not written yet");
}
template void conv2d_backward_weight<float>(const Conv2dShape& s, const float* dy, const float* x, float* dw, float* dbias ,
                            void* workspace, cudaStream_t stream);
template void conv2d_backward_weight<bfloat16>(const Conv2dShape& s, const bfloat16* dy, const bfloat16* x, float* dw, float* dbias ,
                            void* workspace, cudaStream_t stream);

}  // namespace pydiff
