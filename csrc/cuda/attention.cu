#include <stdexcept>

#include "kernels.h"

namespace pydiff {

template <class T>
void attention_forward(const AttentionShape& s, const T* q, const T* k, const T* v, T* out,
                       float* lse , cudaStream_t stream) {
    throw std::runtime_error("attention_forward is not written yet");
}
template void attention_forward<float>(const AttentionShape& s, const float* q, const float* k, const float* v, float* out,
                       float* lse , cudaStream_t stream);
template void attention_forward<bfloat16>(const AttentionShape& s, const bfloat16* q, const bfloat16* k, const bfloat16* v, bfloat16* out,
                       float* lse , cudaStream_t stream);

size_t attention_backward_workspace(const AttentionShape& ) { return 0; }

template <class T>
void attention_backward(const AttentionShape& s, const T* dout, const T* q, const T* k, const T* v, const T* out,
                        const float* lse, T* dq , T* dk ,
                        T* dv , void* workspace, cudaStream_t stream) {
    throw std::runtime_error("attention_backward is not written yet");
}
template void attention_backward<float>(const AttentionShape& s, const float* dout, const float* q, const float* k, const float* v, const float* out,
                        const float* lse, float* dq , float* dk ,
                        float* dv , void* workspace, cudaStream_t stream);
template void attention_backward<bfloat16>(const AttentionShape& s, const bfloat16* dout, const bfloat16* q, const bfloat16* k, const bfloat16* v, const bfloat16* out,
                        const float* lse, bfloat16* dq , bfloat16* dk ,
                        bfloat16* dv , void* workspace, cudaStream_t stream);

}  // namespace pydiff
