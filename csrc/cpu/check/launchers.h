// The CPU's kernels as launchers of csrc/cuda/kernels.h, so that the checks of csrc/cuda/check serve both: the stream and
// the workspace stay unused, and float is the only type, also where a check says bfloat16.
#pragma once
#include <algorithm>
#include <vector>

#include "../conv2d_methods.h"
#include "../kernels.h"
#include "../parallel.h"

namespace pydiff {

using cudaStream_t = const void*;
using bfloat16 = float;

// While true, convolutions go without Winograd's algorithm. The other kernels have one way of working.
inline bool use_naive = false;

inline size_t conv2d_backward_weight_workspace(const Conv2dShape&) { return 0; }
inline size_t group_norm_workspace(const GroupNormShape&) { return 0; }
inline size_t attention_backward_workspace(const AttentionShape&) { return 0; }
inline size_t noise_loss_workspace(int64_t, int64_t) { return 0; }
inline size_t squared_norm_workspace(int64_t) { return 0; }

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const Conv2dAddends<T>& addends, T* y, cudaStream_t) {
    use_winograd(!use_naive);
    conv2d_forward(s, x, w, addends, y);
}
template <class T>
void conv2d_backward_input(const Conv2dShape& s, const T* dy, const T* w, T* dx, cudaStream_t) {
    use_winograd(!use_naive);
    conv2d_backward_input(s, dy, w, dx);
}
template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const T* dy, const T* x, float* dw, float* dbias, int64_t dbias_step,
                            void*, cudaStream_t) {
    use_winograd(!use_naive);
    conv2d_backward_weight(s, dy, x, dw, dbias, dbias_step);
}

template <class T>
void group_norm_forward(const GroupNormShape& s, float eps, const T* x, const float* gamma, const float* beta, T* y,
                        float* mean, float* rstd, void*, cudaStream_t) {
    group_norm_forward(s, eps, x, gamma, beta, y, mean, rstd);
}
template <class T>
void group_norm_backward(const GroupNormShape& s, const T* dy, const T* x, const float* gamma, const float* beta,
                         const float* mean, const float* rstd, T* dx, float* dgamma, float* dbeta, float* dx_sum,
                         void*, cudaStream_t) {
    group_norm_backward(s, dy, x, gamma, beta, mean, rstd, dx, dgamma, dbeta, dx_sum);
}

constexpr float natural = 0.693147181f;  // the CPU's lse is to base 2
template <class T>
void attention_forward(const AttentionShape& s, const T* q, const T* k, const T* v, T* out, float* lse, cudaStream_t) {
    attention_forward(s, q, k, v, out, lse);
    for (int64_t i = 0; i < s.n * s.heads * s.tq; ++i) lse[i] *= natural;
}
template <class T>
void attention_backward(const AttentionShape& s, const T* dout, const T* q, const T* k, const T* v, const T* out,
                        const float* lse, T* dq, T* dk, T* dv, void*, cudaStream_t) {
    std::vector<float> to_base_2(lse, lse + s.n * s.heads * s.tq);
    for (float& sum : to_base_2) sum /= natural;
    attention_backward(s, dout, q, k, v, out, to_base_2.data(), dq, dk, dv);
}

template <class T>
void normal(int64_t n, int64_t size, const NoiseKey& key, T* eps, cudaStream_t) {
    normal(n, size, key, eps);
}
template <class T>
void noise_forward(int64_t n, int64_t size, const T* x0, const float* alpha, const float* sigma, const NoiseKey& key,
                   T* x_t, T* eps, cudaStream_t) {
    noise_forward(n, size, x0, alpha, sigma, key, x_t, eps);
}
template <class T>
void noise_backward(int64_t n, int64_t size, const T* dx_t, const float* alpha, T* dx0, cudaStream_t) {
    noise_backward(n, size, dx_t, alpha, dx0);
}
template <class T>
void noise_loss_forward(int64_t n, int64_t size, const T* f, const T* x0, const float* p, const float* q,
                        const float* weight, const NoiseKey& key, float* loss, void*, cudaStream_t) {
    noise_loss_forward(n, size, f, x0, p, q, weight, key, loss);
}
template <class T>
void noise_loss_backward(int64_t n, int64_t size, const float* dloss, const T* f, const T* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, T* df, cudaStream_t) {
    noise_loss_backward(n, size, dloss, f, x0, p, q, weight, key, df);
}

template <class T>
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const T* f, const T* f_uncond,
                     const NoiseKey* key, float* x_next, float* x0_hat, cudaStream_t) {
    denoise_forward(n, size, step, x, f, f_uncond, key, x_next, x0_hat);
}
template <class T>
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const T* f, const T* f_uncond, float* dx, T* df, cudaStream_t) {
    denoise_backward(n, size, step, dx_next, dx0_hat, x, f, f_uncond, dx, df);
}

inline void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema,
                  bfloat16* low, cudaStream_t) {
    adamw(size, step, p, g, m, v, ema);
    const bool changed = !step.norm2 || *step.norm2 < __builtin_inf();
    if (low && changed) std::copy(p, p + size, low);  // the copy that only a GPU's kernel makes
}
inline void squared_norm(int64_t size, const float* g, double* norm2, void*, cudaStream_t) {
    squared_norm(size, g, norm2);
}

}  // namespace pydiff
