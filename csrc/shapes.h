// What the CPU and the CUDA kernels have in common: the sizes and numbers they are given. No pointers to data here, except
// where a line says so.
#pragma once
#include <cstdint>

namespace pydiff {

// y[n,i,j,o] = bias[o] + add[n,i,j,o] + sum_{a,b,c} X[n, i*stride_h + a - pad_top, j*stride_w + b - pad_left, c] w[a,b,c,o]
// where X[n,p,q,c] = x[n, p/up, q/up, c] is x with every pixel repeated up x up times.
struct Conv2dShape {
    int64_t n, h, w, cin;          // X  (n, h, w, cin), so x  (n, h/up, w/up, cin)
    int64_t kh, kw, cout;          // w  (kh, kw, cin, cout)
    int64_t oh, ow;                // y  (n, oh, ow, cout)
    int64_t stride_h, stride_w;
    int64_t pad_top, pad_left;     // bottom and right padding follow from oh, ow
    int64_t up = 1;                // 1 or 2
};

// What a convolution adds to its sums. Pointers to data.
template <class T>
struct Conv2dAddends {
    const float* bias = nullptr;   // (cout), or (n, cout), a bias for each sample; or null
    int64_t bias_step = 0;         // from one sample's to the next: 0 or cout
    const T* add = nullptr;        // (n, oh, ow, cout) or null
};

// y = act(gamma * (x - mean) * rstd + beta), mean and rstd over (s, c/groups); act = SiLU or identity
struct GroupNormShape {
    int64_t n, s, c, groups;       // x (n, s, c): s pixels or tokens; c divisible by groups
    bool silu;
};

// out = softmax(scale q k^T) v, per head; q, k, v may be views into a packed projection
struct AttentionShape {
    int64_t n, tq, tk, heads, d;               // q (n, tq, heads*d), k and v (n, tk, heads*d), out (n, tq, heads*d)
    int64_t q_batch, q_row, k_batch, k_row, v_batch, v_row;  // strides in elements; the last axis is contiguous
    float scale;
};

// eps = Philox4x32-10 normals, a function of (seed, purpose, sample, step, element)
struct NoiseKey {
    uint64_t seed;
    uint32_t purpose;
    const uint32_t* sample;        // (n)
    const uint32_t* step;          // (n)
};

// One reverse step of any sampler.   f = f_uncond + guidance (f_cond - f_uncond)
//      x0_hat = clip(u x + v f, low, high);   x_next = a x + b x0_hat + d f + sum_k c[k] history[k] + s z
// table (rows, 9 + k) holds u, v, low, high, a, b, d, s, guidance and c of each step; *row says which step this is.
constexpr int most_history = 16;
struct DenoiseTable {
    const float* table;            // (rows, 9 + k)
    const int32_t* row;            // (1) or null: the first
    int64_t rows;
    const float* history[most_history];  // k arrays (n, size)
    int64_t k;
};

// One pass over flat buffers of all parameters. What changes from step to step is read from memory, so that a recorded
// sequence of kernels can be played again:
//     schedule (4), float64: lr, t (1 for the first step), ema_decay, clip (largest norm of the gradient; 0 for any)
//     norm2 (1), float64, or null: the gradient's sum of squares. If it is not finite, nothing is changed.
struct AdamWStep {
    double beta1, beta2, eps, weight_decay;  // double: 1 - 0.9999f would be off by 2e-4
    const double* schedule;
    const double* norm2;
};

}  // namespace pydiff
