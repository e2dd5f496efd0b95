// Every kernel's signature, once, for the CPU and for CUDA. Include cpu/kernels.h or cuda/kernels.h, which give these
// words their meaning:
//     ON_STREAM       CUDA: one more argument, the stream that the launcher queues its kernels on. CPU: nothing
//     IN_WORKSPACE    CUDA: two, scratch memory and the stream. CPU: nothing; its kernels have their own (parallel.h)
//     WORKSPACE       declares the function that names the bytes of that memory. CPU: always 0
//
// T is the type of what flows through the network: float, on GPUs bfloat16 too. Sums are float32 for both. On the CPU
// pointers are NumPy's, on GPUs they are device pointers, and nothing here waits for the device.
//
// Arrays are C-contiguous and channels-last unless a line says otherwise; shapes stand behind names; `or null` marks what
// may be left out. bindings/ has checked all of it before a call, so kernels check nothing. Every size, 0 included, is
// legal. Outputs come last and share no memory with anything else; adamw updates its arrays in place.

namespace pydiff {

// ---- conv2d

// y[n,i,j,o] = bias[o] + add[n,i,j,o] + sum_{a,b,c} X[n, i*stride_h + a - pad_top, j*stride_w + b - pad_left, c] w[a,b,c,o]
// where X[n,p,q,c] = x[n, p/up, q/up, c] is x with every pixel repeated up x up times.
struct Conv2dShape {
    int64_t n, h, w, cin;          // X  (n, h, w, cin), so x  (n, h/up, w/up, cin)
    int64_t kh, kw, cout;          // w  (kh, kw, cin, cout)
    int64_t oh, ow;                // y  (n, oh, ow, cout)
    int64_t stride_h, stride_w;
    int64_t pad_top, pad_left;     // bottom and right padding follow from oh, ow; forward, pad_top may be 1 - up
    int64_t up = 1;                // 1 or 2
};

// What a convolution adds to its sums.
template <class T>
struct Conv2dAddends {
    const float* bias = nullptr;   // (cout), or (n, cout), a bias for each sample; or null
    int64_t bias_step = 0;         // from one sample's to the next: 0 or cout
    const T* add = nullptr;        // (n, oh, ow, cout) or null
};

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const Conv2dAddends<T>& addends, T* y ON_STREAM);
template <class T>
void conv2d_backward_input(const Conv2dShape& s, const T* dy, const T* w, T* dx ON_STREAM);
WORKSPACE(conv2d_backward_weight_workspace, const Conv2dShape&);
template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const T* dy, const T* x, float* dw,
                            float* dbias /* (cout) or (n, cout) or null */,
                            int64_t dbias_step /* 0 or cout */ IN_WORKSPACE);

// ---- group_norm

// y = act(gamma * (x - mean) * rstd + beta), mean and rstd over (s, c/groups); act = SiLU or identity
struct GroupNormShape {
    int64_t n, s, c, groups;       // x (n, s, c): s pixels or tokens; c divisible by groups
    bool silu;
};

WORKSPACE(group_norm_workspace, const GroupNormShape&);  // forward and backward
template <class T>
void group_norm_forward(const GroupNormShape& s, float eps, const T* x, const float* gamma /* (c) */,
                        const float* beta /* (c) */, T* y, float* mean /* (n, groups) */,
                        float* rstd /* (n, groups) */ IN_WORKSPACE);
// dx_sum (c) or null: dx summed over n and s, which is the gradient of the bias of a convolution in front.
template <class T>
void group_norm_backward(const GroupNormShape& s, const T* dy, const T* x, const float* gamma, const float* beta,
                         const float* mean, const float* rstd, T* dx, float* dgamma, float* dbeta,
                         float* dx_sum IN_WORKSPACE);

// ---- attention

// out = softmax(scale q k^T) v, per head; q, k, v may be views into a packed projection
struct AttentionShape {
    int64_t n, tq, tk, heads, d;               // q (n, tq, heads*d), k and v (n, tk, heads*d), out (n, tq, heads*d)
    int64_t q_batch, q_row, k_batch, k_row, v_batch, v_row;  // strides in elements; the last axis is contiguous
    float scale;
    bool causal = false;                       // query i sees only the keys 0 .. i
};

// key_mask: false for keys that no query of a sample sees. A query that sees none gets 0, and an lse of 0.
// lse: log-sum-exp of the scaled scores; to base 2 on the CPU, to base e on GPUs.
template <class T>
void attention_forward(const AttentionShape& s, const T* q, const T* k, const T* v,
                       const bool* key_mask /* (n, tk) or null */, T* out,
                       float* lse /* (n, heads, tq) */ ON_STREAM);
WORKSPACE(attention_backward_workspace, const AttentionShape&);
template <class T>
void attention_backward(const AttentionShape& s, const T* dout, const T* q, const T* k, const T* v,
                        const bool* key_mask, const T* out, const float* lse, T* dq /* (n, tq, heads*d) */, T* dk /* (n, tk, heads*d) */,
                        T* dv /* (n, tk, heads*d) */ IN_WORKSPACE);

// ---- layer_norm

// y = gamma (x - mean) rstd + beta, mean and rstd of every row of c channels
template <class T>
void layer_norm_forward(int64_t rows, int64_t c, float eps, const T* x /* (rows, c) */,
                        const float* gamma /* (c) or null: 1 */, const float* beta /* (c) or null: 0 */, T* y,
                        float* mean /* (rows) */, float* rstd /* (rows) */ ON_STREAM);
WORKSPACE(layer_norm_backward_workspace, int64_t /* rows */, int64_t /* c */);
template <class T>
void layer_norm_backward(int64_t rows, int64_t c, const T* dy, const T* x, const float* gamma /* or null */,
                         const float* mean, const float* rstd, T* dx, float* dgamma /* or null */,
                         float* dbeta /* or null */ IN_WORKSPACE);

// ---- gelu

// y = gelu(x) = x Phi(x), element by element;  backward: dx = dy (Phi(x) + x phi(x))
template <class T>
void gelu_forward(int64_t size, const T* x /* (size) */, T* y ON_STREAM);
template <class T>
void gelu_backward(int64_t size, const T* dy, const T* x, T* dx ON_STREAM);
// y = a gelu(b), where a row of x is a and then b
template <class T>
void geglu_forward(int64_t rows, int64_t c, const T* x /* (rows, 2c) */, T* y /* (rows, c) */ ON_STREAM);
template <class T>
void geglu_backward(int64_t rows, int64_t c, const T* dy /* (rows, c) */, const T* x, T* dx /* (rows, 2c) */ ON_STREAM);

// ---- noise

// eps = Philox4x32-10 normals, a function of (seed, purpose, sample, step, element)
struct NoiseKey {
    uint64_t seed;
    uint32_t purpose;
    const uint32_t* sample;        // (n)
    const uint32_t* step;          // (n)
};

template <class T>
void normal(int64_t n, int64_t size, const NoiseKey& key, T* eps /* (n, size) */ ON_STREAM);
// x_t = alpha x0 + sigma eps
template <class T>
void noise_forward(int64_t n, int64_t size, const T* x0 /* (n, size) */, const float* alpha /* (n) */,
                   const float* sigma /* (n) */, const NoiseKey& key, T* x_t,
                   T* eps /* or null: not kept */ ON_STREAM);
template <class T>
void noise_backward(int64_t n, int64_t size, const T* dx_t, const float* alpha, T* dx0 ON_STREAM);
// loss[i] = weight[i] / size sum_e (f - target)^2,  target = p[i] x0 + q[i] eps, with eps made again from its key.
WORKSPACE(noise_loss_workspace, int64_t /* n */, int64_t /* size */);
template <class T>
void noise_loss_forward(int64_t n, int64_t size, const T* f /* (n, size) */, const T* x0 /* (n, size) */,
                        const float* p /* (n) */, const float* q /* (n) */, const float* weight /* (n) */,
                        const NoiseKey& key, float* loss /* (n) */ IN_WORKSPACE);
template <class T>
void noise_loss_backward(int64_t n, int64_t size, const float* dloss /* (n) */, const T* f, const T* x0, const float* p,
                         const float* q, const float* weight, const NoiseKey& key, T* df ON_STREAM);

// ---- dropout

// y = x / (1 - p) where u >= p, 0 x elsewhere, with u in [0, 1) a function of (seed, purpose, sample, step, element).
// scale: 1 / (1 - p). Its own backward: dx from dy.
template <class T>
void dropout_forward(int64_t n, int64_t size, const T* x /* (n, size) */, float p, float scale, const NoiseKey& key, T* y
             ON_STREAM);

// ---- denoise: the image and its history stay float32; T is what the network gives

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

template <class T>
void denoise_forward(int64_t n, int64_t size, const DenoiseTable& step, const float* x, const T* f,
                     const T* f_uncond /* or null */, const NoiseKey* key /* or null: no noise */, float* x_next,
                     float* x0_hat ON_STREAM);
// Gradients with respect to x and f (the history and the unconditional output are constants here).
template <class T>
void denoise_backward(int64_t n, int64_t size, const DenoiseTable& step, const float* dx_next, const float* dx0_hat,
                      const float* x, const T* f, const T* f_uncond /* or null */, float* dx, T* df ON_STREAM);

// ---- adamw

// One pass over flat buffers of all parameters. What changes from step to step is read from memory, so that a recorded
// sequence of kernels can be played again:
//     schedule (4), float64: lr, t (1 for the first step), ema_decay, clip (largest norm of the gradient; 0 for any)
//     norm2 (1), float64, or null: the gradient's sum of squares. If it is not finite, nothing is changed.
struct AdamWStep {
    double beta1, beta2, eps, weight_decay;  // double: 1 - 0.9999f would be off by 2e-4
    const double* schedule;
    const double* norm2;
};

// Everything but g is updated in place; low becomes a bfloat16 copy of p (on GPUs: the CPU is given null).
void adamw(int64_t size, const AdamWStep& step, float* p, const float* g, float* m, float* v, float* ema /* or null */,
           bfloat16* low /* or null */ ON_STREAM);

// Sum of squares in double, in fixed blocks: the same bits for any thread count. Infinity or NaN when g has one.
WORKSPACE(squared_norm_workspace, int64_t /* size */);
void squared_norm(int64_t size, const float* g, double* norm2 /* (1) */ IN_WORKSPACE);

}  // namespace pydiff
