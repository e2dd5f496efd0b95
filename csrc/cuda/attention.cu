// Scaled dot-product attention, per sample and head (Vaswani et al. 2017, "Attention Is All You Need", equation 1):
//
//     s = scale q kT          (tq, tk)
//     p = softmax(s)          row by row: p = exp(s - lse),   lse = log sum_keys exp(s)
//     out = p v               (tq, d)
//
// Neither s nor p is ever stored: tile by tile the forward pass keeps a running softmax, and the backward pass makes p
// again from lse (Dao et al. 2022, "FlashAttention"; Dao 2023, "FlashAttention-2"). With dp = dout vT:
//     1. delta = sum_keys p dp = sum_d dout out      per query
//     2. dv = pT dout
//     3. ds = p (dp - delta)
//     4. dq = scale ds k
//     5. dk = scale dsT q
//
// Array path: pydiff/ops/attention.py. Reference: pydiff/reference/attention.py. CPU: csrc/cpu/attention.cpp.
//
// Layout: q, k and v are (n, t, heads*d) with strides, read where they lie, also side by side in one projection. Only d
// needs to be contiguous; copies are of 16 bytes where every row of every head starts at a multiple of that, and of
// single elements otherwise. A block owns rows of one head and makes all of their sums itself, in one order: dq has a
// separate kernel, which makes the scores a second time, and there are no atomics.
//
// A key that a query does not see, by the mask or because a causal query comes before it, counts as a score of -infinity;
// tiles that no row of a block sees are skipped.
//
// Scores in the thousands are known to a few thousandths only, so exp(s - lse) is right only if the backward pass meets
// the very rounding errors of the forward pass: it adds up every score in the same order.
#include "attention_bfloat16.h"
#include "attention_float32.h"

namespace pydiff {
namespace {

// ---- naive: the equations, one thread an element -----------------------------------------------------------------

constexpr int naive_threads = 256;

template <class T>
__device__ float dot(int64_t d, const T* a, const T* b) {
    float sum = 0.0f;
    for (int64_t e = 0; e < d; ++e) sum = fmaf(to_float(a[e]), to_float(b[e]), sum);
    return sum;
}

template <class T>
__device__ float score(const AttentionShape& s, const T* q, const T* k) {
    return __fmul_rn(s.scale, dot(s.d, q, k));
}

// Whether a query sees a key; key_mask is that of the sample.
__device__ __forceinline__ bool sees(const AttentionShape& s, const bool* key_mask, int64_t query, int64_t key) {
    return (!s.causal || key <= query) && (!key_mask || key_mask[key]);
}

// One thread a query.
template <class T>
__global__ void lse_naive_kernel(AttentionShape s, const T* q, const T* k, const bool* key_mask, float* lse) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.n * s.heads * s.tq) return;
    const int64_t query = i % s.tq, head = i / s.tq % s.heads, sample = i / s.tq / s.heads;
    q += strided_at(s, s.q_batch, s.q_row, {query, head, sample});
    k += strided_at(s, s.k_batch, s.k_row, {0, head, sample});
    key_mask = mask_of(s, key_mask, sample);
    float most = -INFINITY, sum = 0.0f;
    for (int64_t t = 0; t < s.tk; ++t)
        if (sees(s, key_mask, query, t)) most = fmaxf(most, score(s, q, k + t * s.k_row));
    for (int64_t t = 0; t < s.tk; ++t)
        if (sees(s, key_mask, query, t)) sum += expf(score(s, q, k + t * s.k_row) - most);
    lse[i] = key_mask && sum == 0.0f ? 0.0f : most + logf(sum);
}

// The other naive kernels have one thread for every element of an array (n, t, heads, d).
struct Element {
    int64_t e, head, row, sample;
    __device__ Element(const AttentionShape& s, int64_t t, int64_t i)
        : e(i % s.d), head(i / s.d % s.heads), row(i / s.d / s.heads % t), sample(i / s.d / s.heads / t) {}
};

template <class T>
__global__ void out_naive_kernel(AttentionShape s, const T* q, const T* k, const T* v, const bool* key_mask,
                                 const float* lse, T* out) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.n * s.tq * s.heads * s.d) return;
    const Element at(s, s.tq, i);
    q += strided_at(s, s.q_batch, s.q_row, {at.row, at.head, at.sample});
    k += strided_at(s, s.k_batch, s.k_row, {0, at.head, at.sample});
    v += strided_at(s, s.v_batch, s.v_row, {0, at.head, at.sample});
    const float log_sum = lse[(at.sample * s.heads + at.head) * s.tq + at.row];
    key_mask = mask_of(s, key_mask, at.sample);
    float sum = 0.0f;
    for (int64_t t = 0; t < s.tk; ++t)
        if (sees(s, key_mask, at.row, t))
            sum += expf(score(s, q, k + t * s.k_row) - log_sum) * to_float(v[t * s.v_row + at.e]);
    out[i] = from_float<T>(sum);
}

template <class T>
__global__ void dq_naive_kernel(AttentionShape s, const T* dout, const T* q, const T* k, const T* v,
                                const bool* key_mask, const T* out, const float* lse, T* dq) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.n * s.tq * s.heads * s.d) return;
    const Element at(s, s.tq, i);
    const Place query{at.row, at.head, at.sample}, start{0, at.head, at.sample};
    q += strided_at(s, s.q_batch, s.q_row, query);
    dout += packed_at(s, s.tq, query);
    out += packed_at(s, s.tq, query);
    k += strided_at(s, s.k_batch, s.k_row, start);
    v += strided_at(s, s.v_batch, s.v_row, start);
    const float log_sum = lse[(at.sample * s.heads + at.head) * s.tq + at.row], delta = dot(s.d, dout, out);  // 1
    key_mask = mask_of(s, key_mask, at.sample);
    float sum = 0.0f;
    for (int64_t t = 0; t < s.tk; ++t) {
        if (!sees(s, key_mask, at.row, t)) continue;
        const float p = expf(score(s, q, k + t * s.k_row) - log_sum);
        const float ds = p * (dot(s.d, dout, v + t * s.v_row) - delta);  // 3
        sum += ds * to_float(k[t * s.k_row + at.e]);                     // 4
    }
    dq[i] = from_float<T>(s.scale * sum);
}

template <class T>
__global__ void dkdv_naive_kernel(AttentionShape s, const T* dout, const T* q, const T* k, const T* v,
                                  const bool* key_mask, const T* out, const float* lse, T* dk, T* dv) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.n * s.tk * s.heads * s.d) return;
    const Element at(s, s.tk, i);
    const Place key{at.row, at.head, at.sample}, start{0, at.head, at.sample};
    k += strided_at(s, s.k_batch, s.k_row, key);
    v += strided_at(s, s.v_batch, s.v_row, key);
    q += strided_at(s, s.q_batch, s.q_row, start);
    dout += packed_at(s, s.tq, start);
    out += packed_at(s, s.tq, start);
    lse += (at.sample * s.heads + at.head) * s.tq;
    const int64_t row = s.heads * s.d;
    key_mask = mask_of(s, key_mask, at.sample);
    float dk_sum = 0.0f, dv_sum = 0.0f;
    for (int64_t t = 0; t < s.tq; ++t) {
        if (!sees(s, key_mask, t, at.row)) continue;
        const float p = expf(score(s, q + t * s.q_row, k) - lse[t]);
        const float delta = dot(s.d, dout + t * row, out + t * row);  // 1
        const float ds = p * (dot(s.d, dout + t * row, v) - delta);   // 3
        dv_sum += p * to_float(dout[t * row + at.e]);                 // 2
        dk_sum += ds * to_float(q[t * s.q_row + at.e]);               // 5
    }
    dk[i] = from_float<T>(s.scale * dk_sum);
    dv[i] = from_float<T>(dv_sum);
}

template <auto kernel, class... Args>
void launch_naive(int64_t threads, cudaStream_t stream, Args... args) {
    if (threads == 0) return;
    launch<kernel>(dim3(unsigned((threads + naive_threads - 1) / naive_threads)), dim3(naive_threads), 0, stream,
                   args...);
}

// ---- fast --------------------------------------------------------------------------------------------------------

// stats (n, heads, padded) from dout, out (n, tq, heads, d) and lse. Eight threads to a query and head; neighbours are
// heads of one query, as in memory.
constexpr int delta_threads = 256, delta_lanes = 8;
template <class T>
__global__ void __launch_bounds__(delta_threads)
    attention_delta_kernel(AttentionShape s, bool aligned, const T* __restrict__ dout, const T* __restrict__ out,
                           const float* __restrict__ lse, Stat* __restrict__ stats) {
    const int64_t i = (int64_t(blockIdx.x) * delta_threads + threadIdx.x) / delta_lanes, padded = padded_queries(s.tq);
    const int lane = int(threadIdx.x) % delta_lanes;
    const int64_t head = i % s.heads, query = i / s.heads % padded, sample = i / s.heads / padded;
    const bool inside = sample < s.n && query < s.tq;
    float delta = 0.0f;
    if (inside) {
        const int64_t at = packed_at(s, s.tq, {query, head, sample});
        for (int64_t e = 8 * lane; e < s.d; e += 8 * delta_lanes) {
            float a[8], b[8];
            load_upto(a, dout + at + e, s.d - e, aligned);
            load_upto(b, out + at + e, s.d - e, aligned);
#pragma unroll
            for (int j = 0; j < 8; ++j) delta = fmaf(a[j], b[j], delta);  // 1
        }
    }
#pragma unroll
    for (int lanes = delta_lanes / 2; lanes > 0; lanes /= 2) delta += __shfl_xor_sync(~0u, delta, lanes);
    if (lane == 0 && sample < s.n) {
        const int64_t row = sample * s.heads + head;
        store_vector(stats + row * padded + query, inside ? Stat{lse[row * s.tq + query], delta} : Stat{0.0f, 0.0f});
    }
}

// dk and dv (n, tk, heads*d) of keys that a mask hides become 0, whatever their sums were. A block has the rows of one key.
constexpr int hide_threads = 128;
template <class T>
__global__ void __launch_bounds__(hide_threads)
    attention_hide_kernel(int64_t row, bool aligned, const bool* __restrict__ key_mask, T* __restrict__ dk,
                          T* __restrict__ dv) {
    if (key_mask[blockIdx.x]) return;
    const float zeros[8] = {};
    for (int64_t e = int64_t(threadIdx.x) * 8; e < row; e += hide_threads * 8) {
        store_upto(dk + int64_t(blockIdx.x) * row + e, zeros, row - e, aligned);
        store_upto(dv + int64_t(blockIdx.x) * row + e, zeros, row - e, aligned);
    }
}

// f(integral constant D) with the smallest D of this list that is at least d. Larger heads have no fast kernel.
constexpr int64_t largest_head = 512;
template <int D, int... more, class F>
void by_head_size(int64_t d, F&& f) {
    if constexpr (sizeof...(more) > 0)
        if (d > D) return by_head_size<more...>(d, f);
    f(std::integral_constant<int, D>());
}
// 48, 80 and 160 for heads of 40, 80 and 160 channels, as Stable Diffusion has. 512, which its autoencoder has, is too
// much for the kernels of bfloat16: `narrow` of those, else the kernels of float32.
template <class F, class Wide>
void by_head_size(bfloat16, int64_t d, F&& narrow, Wide&& wide) {
    if (d > 256) return wide(std::integral_constant<int, 512>());
    by_head_size<16, 32, 48, 64, 80, 128, 160, 256>(d, narrow);
}
template <class F>
void by_head_size(float, int64_t d, F&& f) {
    by_head_size<16, 32, 64, 128, 256, 512>(d, f);
}

// Whether every row of every head starts at a multiple of 16 bytes.
template <class T>
bool rows_aligned(const AttentionShape& s, std::initializer_list<const void*> arrays) {
    constexpr int64_t unit = 16 / sizeof(T);
    for (int64_t stride : {s.d, s.q_batch, s.q_row, s.k_batch, s.k_row, s.v_batch, s.v_row})
        if (stride % unit) return false;
    return aligned16(arrays);
}

// Blocks of 128 queries read keys half as often as blocks of 64, but there must be enough of them: two for each of the
// 132 processors of an H100. The results are the same, bit for bit.
constexpr int64_t enough_blocks = 264;

struct Run {
    AttentionShape s;
    bool aligned, out_aligned;
    const bool* key_mask;
    cudaStream_t stream;
};

template <int D, class T>
void forward_float32(const Run& r, const T* q, const T* k, const T* v, T* out, float* lse) {
    launch<float32::attention_forward_kernel<D, T>>(places(r.s.tq, float32::rows<D>, r.s.heads, r.s.n),
                                                    dim3(float32::threads), float32::bytes<D>(1), r.stream, r.s,
                                                    r.aligned, r.out_aligned, q, k, v, r.key_mask, out, lse);
}

void forward(const Run& r, const bfloat16* q, const bfloat16* k, const bfloat16* v, bfloat16* out, float* lse) {
    const auto narrow = [&](auto size) {
        constexpr int D = size;
        const auto run = [&](auto tiles) {
            constexpr int queries = 64 * tiles;
            launch<bf16::attention_forward_kernel<D, tiles>>(places(r.s.tq, queries, r.s.heads, r.s.n),
                                                             dim3(bf16::threads), bf16::forward_bytes<D, tiles>,
                                                             r.stream, r.s, r.aligned, r.out_aligned, q, k, v,
                                                             r.key_mask, out, lse);
        };
        if constexpr (D <= 128)
            if (!r.s.causal && !r.key_mask && r.s.tq > 64 && places(r.s.tq, 128, r.s.heads, r.s.n).x >= enough_blocks)
                return run(std::integral_constant<int, 2>());
        run(std::integral_constant<int, 1>());
    };
    by_head_size(bfloat16(), r.s.d, narrow, [&](auto size) { forward_float32<size>(r, q, k, v, out, lse); });
}

void forward(const Run& r, const float* q, const float* k, const float* v, float* out, float* lse) {
    by_head_size(float(), r.s.d, [&](auto size) { forward_float32<size>(r, q, k, v, out, lse); });
}

template <int D, class T>
void backward_float32(const Run& r, const T* dout, const T* q, const T* k, const T* v, const Stat* stats, T* dq, T* dk,
                      T* dv) {
    launch<float32::attention_dkdv_kernel<D, T>>(places(r.s.tk, float32::rows<D>, r.s.heads, r.s.n),
                                                 dim3(float32::threads), float32::bytes<D>(2), r.stream, r.s,
                                                 r.aligned, r.out_aligned, dout, q, k, v, stats, dk, dv);
    if (r.s.tq > 0)
        launch<float32::attention_dq_kernel<D, T>>(places(r.s.tq, float32::rows<D>, r.s.heads, r.s.n),
                                                   dim3(float32::threads), float32::bytes<D>(2), r.stream, r.s,
                                                   r.aligned, r.out_aligned, dout, q, k, v, r.key_mask, stats, dq);
}

void backward(const Run& r, const bfloat16* dout, const bfloat16* q, const bfloat16* k, const bfloat16* v,
              const Stat* stats, bfloat16* dq, bfloat16* dk, bfloat16* dv) {
    const auto narrow = [&](auto size) {
        constexpr int D = size;
        const auto sum_keys = [&](auto causal) {
            launch<bf16::attention_dkdv_kernel<D, causal>>(places(r.s.tk, bf16::dkdv_keys<D>, r.s.heads, r.s.n),
                                                           dim3(bf16::threads), bf16::dkdv_bytes<D>, r.stream, r.s,
                                                           r.aligned, r.out_aligned, dout, q, k, v, stats, dk, dv);
        };
        if (r.s.causal)
            sum_keys(std::true_type());
        else
            sum_keys(std::false_type());
        if (r.s.tq > 0)
            launch<bf16::attention_dq_kernel<D>>(places(r.s.tq, 64, r.s.heads, r.s.n), dim3(bf16::threads),
                                                 bf16::dq_bytes<D>, r.stream, r.s, r.aligned, r.out_aligned, dout, q,
                                                 k, v, r.key_mask, stats, dq);
    };
    by_head_size(bfloat16(), r.s.d, narrow,
                 [&](auto size) { backward_float32<size>(r, dout, q, k, v, stats, dq, dk, dv); });
}

void backward(const Run& r, const float* dout, const float* q, const float* k, const float* v, const Stat* stats,
              float* dq, float* dk, float* dv) {
    by_head_size(float(), r.s.d, [&](auto size) { backward_float32<size>(r, dout, q, k, v, stats, dq, dk, dv); });
}

}  // namespace

template <class T>
void attention_forward(const AttentionShape& s, const T* q, const T* k, const T* v, const bool* key_mask, T* out,
                       float* lse /* (n, heads, tq) */, cudaStream_t stream) {
    const int64_t queries = s.n * s.heads * s.tq;
    if (queries == 0) return;
    if (use_naive || s.d > largest_head || s.d == 0) {
        launch_naive<lse_naive_kernel<T>>(queries, stream, s, q, k, key_mask, lse);
        return launch_naive<out_naive_kernel<T>>(queries * s.d, stream, s, q, k, v, key_mask, lse, out);
    }
    const bool out_aligned = s.d % 8 == 0 && aligned16({out});
    forward({s, rows_aligned<T>(s, {q, k, v}), out_aligned, key_mask, stream}, q, k, v, out, lse);
}

size_t attention_backward_workspace(const AttentionShape& s) {
    return size_t(s.n * s.heads * padded_queries(s.tq)) * sizeof(Stat);
}

template <class T>
void attention_backward(const AttentionShape& s, const T* dout, const T* q, const T* k, const T* v,
                        const bool* key_mask, const T* out, const float* lse, T* dq /* (n, tq, heads*d) */, T* dk /* (n, tk, heads*d) */,
                        T* dv /* (n, tk, heads*d) */, void* workspace, cudaStream_t stream) {
    if (s.n * s.heads * s.d == 0) return;
    if (use_naive || s.d > largest_head) {
        launch_naive<dq_naive_kernel<T>>(s.n * s.tq * s.heads * s.d, stream, s, dout, q, k, v, key_mask, out, lse, dq);
        return launch_naive<dkdv_naive_kernel<T>>(s.n * s.tk * s.heads * s.d, stream, s, dout, q, k, v, key_mask, out,
                                                  lse, dk, dv);
    }
    Stat* stats = static_cast<Stat*>(workspace);
    const int64_t groups = s.n * s.heads * padded_queries(s.tq), each = delta_threads / delta_lanes;
    if (groups > 0)
        launch<attention_delta_kernel<T>>(dim3(unsigned((groups + each - 1) / each)), dim3(delta_threads), 0, stream, s,
                                          s.d % 8 == 0 && aligned16({dout, out}), dout, out, lse, stats);
    const bool out_aligned = s.d % 8 == 0 && aligned16({dq, dk, dv});
    backward({s, rows_aligned<T>(s, {q, k, v, dout}), out_aligned, key_mask, stream}, dout, q, k, v, stats, dq, dk, dv);
    if (key_mask && s.tk > 0)
        launch<attention_hide_kernel<T>>(dim3(unsigned(s.n * s.tk)), dim3(hide_threads), 0, stream, s.heads * s.d,
                                         out_aligned, key_mask, dk, dv);
}

#define PYDIFF_INSTANTIATE(T)                                                                                        \
    template void attention_forward<T>(const AttentionShape&, const T*, const T*, const T*, const bool*, T*, float*, \
                                       cudaStream_t);                                                                \
    template void attention_backward<T>(const AttentionShape&, const T*, const T*, const T*, const T*, const bool*,  \
                                        const T*, const float*, T*, T*, T*, void*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
