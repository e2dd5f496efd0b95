#include <stdexcept>

#include "kernels.h"

namespace pydiff {

void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema ,
           bfloat16* low , cudaStream_t stream) {
    throw std::runtime_error("adamw is not written yet");
}

size_t squared_norm_workspace(int64_t) { return 0; }

void squared_norm(int64_t size, const float* g, double* norm2 , void* workspace, cudaStream_t stream) {
    throw std::runtime_error("squared_norm is not written yet");
}

}  // namespace pydiff
