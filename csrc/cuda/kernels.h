// Every CUDA kernel's launcher, once: the names, the order and the shapes of csrc/cpu/kernels.h, plus the type T of what
// flows through the network (float or bfloat16; sums are float32 in both), a workspace where sums are made in parts, and
// the stream. All pointers are device pointers. bindings.cpp has checked everything, so kernels check nothing; every
// size, 0 included, is legal. Nothing here waits for the device.
#pragma once
#include "../shapes.h"
#include "../simt/device.h"

namespace pydiff {

using bfloat16 = __nv_bfloat16;

// While true, launchers use the naive kernel of their file: the equation as it stands, to compare the fast one with.
inline bool use_naive = false;

// ---- conv2d: filters see X[n,p,q,c] = x[n, p/up, q/up, c]
template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const Conv2dAddends<T>& addends, T* y,
                    cudaStream_t stream);
template <class T>
void conv2d_backward_input(const Conv2dShape& s, const T* dy, const T* w, T* dx, cudaStream_t stream);
size_t conv2d_backward_weight_workspace(const Conv2dShape& s);  // bytes
template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const T* dy, const T* x, float* dw,
                            float* dbias /* (cout) or (n, cout) or null */, int64_t dbias_step /* 0 or cout */,
                            void* workspace, cudaStream_t stream);

// ---- group_norm
size_t group_norm_workspace(const GroupNormShape& s);  // bytes, forward and backward
template <class T>
void group_norm_forward(const GroupNormShape& s, float eps, const T* x, const float* gamma /* (c) */,
                        const float* beta /* (c) */, T* y, float* mean /* (n, groups) */, float* rstd /* (n, groups) */,
                        void* workspace, cudaStream_t stream);
// dx_sum (c) or null: dx summed over n and s, which is the gradient of the bias of a convolution in front.
template <class T>
void group_norm_backward(const GroupNormShape& s, const T* dy, const T* x, const float* gamma, const float* beta,
                         const float* mean, const float* rstd, T* dx, float* dgamma, float* dbeta, float* dx_sum,
                         void* workspace, cudaStream_t stream);

// ---- attention
template <class T>
void attention_forward(const AttentionShape& s, const T* q, const T* k, const T* v, T* out,
                       float* lse /* (n, heads, tq) */, cudaStream_t stream);
size_t attention_backward_workspace(const AttentionShape& s);  // bytes
template <class T>
void attention_backward(const AttentionShape& s, const T* dout, const T* q, const T* k, const T* v, const T* out,
                        const float* lse, T* dq /* (n, tq, heads*d) */, T* dk /* (n, tk, heads*d) */,
                        T* dv /* (n, tk, heads*d) */, void* workspace, cudaStream_t stream);

// ---- noise
template <class T>
void normal(int64_t n, int64_t size, const NoiseKey& key, T* eps /* (n, size) */, cudaStream_t stream);
template <class T>
void noise_forward(int64_t n, int64_t size, const T* x0 /* (n, size) */, const float* alpha /* (n) */,
                   const float* sigma /* (n) */, const NoiseKey& key, T* x_t, T* eps /* or null: not kept */,
                   cudaStream_t stream);
template <class T>
void noise_backward(int64_t n, int64_t size, const T* dx_t, const float* alpha, T* dx0, cudaStream_t stream);
// loss[i] = weight[i] / size sum_e (f - target)^2,  target = p[i] x0 + q[i] eps, with eps made again from its key.
size_t noise_loss_workspace(int64_t n, int64_t size);  // bytes
template <class T>
void noise_loss_forward(int64_t n, int64_t size, const T* f /* (n, size) */, const T* x0 /* (n, size) */,
                        const float* p /* (n) */, const float* q /* (n) */, const float* weight /* (n) */,
                        const NoiseKey& key, float* loss /* (n) */, void* workspace, cudaStream_t stream);
template <class T>
void noise_loss_backward(int64_t n, int64_t size, const float* dloss /* (n) */, const T* f, const T* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, T* df, cudaStream_t stream);

// ---- denoise: the picture and its history stay float32; T is what the network gives
template <class T>
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const T* f,
                     const T* f_uncond /* or null */, const NoiseKey* key /* or null: no noise */, float* x_next,
                     float* x0_hat, cudaStream_t stream);
template <class T>
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const T* f, const T* f_uncond /* or null */, float* dx, T* df,
                      cudaStream_t stream);

// ---- adamw: everything but g is updated in place; low, if not null, becomes a bfloat16 copy of p
void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema /* or null */,
           bfloat16* low /* or null */, cudaStream_t stream);
size_t squared_norm_workspace(int64_t size);  // bytes
// Sum of squares, made in double in fixed blocks.
void squared_norm(int64_t size, const float* g, double* norm2 /* (1) */, void* workspace, cudaStream_t stream);

}  // namespace pydiff
