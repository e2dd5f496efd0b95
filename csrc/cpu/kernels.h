// Every CPU kernel's signature, once. Arrays are float32, C-contiguous and channels-last unless a line says otherwise;
// shapes stand behind the names; `or null` marks what may be left out. bindings.cpp has checked all of it before a call,
// so kernels check nothing. csrc/cuda/kernels.h has the same names in the same order, plus a stream.
#pragma once
#include "../shapes.h"

namespace pydiff {

// ---- conv2d: y[n,i,j,o] = bias[o] + add[n,i,j,o]
//                           + sum_{a,b,c} X[n, i*stride_h + a - pad_top, j*stride_w + b - pad_left, c] w[a,b,c,o],
//      X[n,p,q,c] = x[n, p/up, q/up, c]
void conv2d_forward(const Conv2dShape& s, const float* x, const float* w, const Conv2dAddends<float>& addends, float* y);
void conv2d_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx);
void conv2d_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw,
                            float* dbias /* (cout) or (n, cout) or null */, int64_t dbias_step /* 0 or cout */);

// ---- group_norm: y = act(gamma * (x - mean) * rstd + beta), mean and rstd over (s, c/groups); act = SiLU or identity
void group_norm_forward(const GroupNormShape& s, float eps, const float* x, const float* gamma /* (c) */,
                        const float* beta /* (c) */, float* y, float* mean /* (n, groups) */, float* rstd /* (n, groups) */);
void group_norm_backward(const GroupNormShape& s, const float* dy, const float* x, const float* gamma, const float* beta,
                         const float* mean, const float* rstd, float* dx, float* dgamma, float* dbeta,
                         float* dx_sum /* (c) or null: dx summed over n and s, the gradient of a bias in front */);

// ---- attention: out = softmax(scale q k^T) v, per head; q, k, v may be views into a packed projection
void attention_forward(const AttentionShape& s, const float* q, const float* k, const float* v, float* out,
                       float* lse /* (n, heads, tq): log-sum-exp of the scaled scores, to base 2 */);
void attention_backward(const AttentionShape& s, const float* dout, const float* q, const float* k, const float* v,
                        const float* out, const float* lse, float* dq /* (n, tq, heads*d) */,
                        float* dk /* (n, tk, heads*d) */, float* dv /* (n, tk, heads*d) */);

// ---- noise: x_t = alpha x0 + sigma eps;  eps = Philox4x32-10 normals, a function of (seed, purpose, sample, step, element)
void normal(int64_t n, int64_t size, const NoiseKey& key, float* eps /* (n, size) */);
void noise_forward(int64_t n, int64_t size, const float* x0 /* (n, size) */, const float* alpha /* (n) */,
                   const float* sigma /* (n) */, const NoiseKey& key, float* x_t, float* eps /* or null: not kept */);
void noise_backward(int64_t n, int64_t size, const float* dx_t, const float* alpha, float* dx0);
// loss[i] = weight[i] / size sum_e (f - target)^2,  target = p[i] x0 + q[i] eps, with eps made again from its key.
void noise_loss_forward(int64_t n, int64_t size, const float* f /* (n, size) */, const float* x0 /* (n, size) */,
                        const float* p /* (n) */, const float* q /* (n) */, const float* weight /* (n) */,
                        const NoiseKey& key, float* loss /* (n) */);
void noise_loss_backward(int64_t n, int64_t size, const float* dloss /* (n) */, const float* f, const float* x0,
                         const float* p, const float* q, const float* weight, const NoiseKey& key, float* df);

// ---- denoise: one reverse step of any sampler.   f = f_uncond + guidance (f_cond - f_uncond)
//      x0_hat = clip(u x + v f, low, high);   x_next = a x + b x0_hat + d f + sum_k c[k] history[k] + s z
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const float* f,
                     const float* f_uncond /* or null */, const NoiseKey* key /* or null: no noise */, float* x_next,
                     float* x0_hat);
// Gradients with respect to x and f (the history and the unconditional output are constants here).
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const float* f, const float* f_uncond /* or null */, float* dx, float* df);

// ---- adamw: one pass over flat buffers of all parameters; everything but g is updated in place
void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema /* or null */);

// Sum of squares in double, in fixed blocks: the same bits for any thread count. Infinity or NaN when g has one.
void squared_norm(int64_t size, const float* g, double* norm2 /* (1) */);

}  // namespace pydiff
