// attention.cu in float32, with no less: for training in float32, and to compare bfloat16 with on the GPU itself. Heads
// of more than 256 channels, such as an autoencoder's one head of 512, take these kernels in bfloat16 too: their sums
// have no room in the registers of one warp. T is the type in memory.
//
// 256 threads stand as 16 x 16. A block has 16 R rows (queries; for dk and dv, keys) and steps over tiles of 16 C rows
// of the other side. Of the scores, thread (y, x) makes rows R y + i and columns x + 16 j; of what has D columns, the
// same rows, W columns at a time. A row belongs to the 16 threads of half a warp, who take its maximum and its sum by
// shuffles, and exchange its weights through shared memory without waiting for the block.
//
// Rows in shared memory are D + 4 floats apart: 8 threads that read 16 bytes of 8 neighbouring rows meet no bank twice.
#pragma once
#include "../simt/ptx.h"
#include "attention.h"

namespace pydiff {
namespace float32 {

constexpr int threads = 256;
// R and C, so that three tiles fit into 99 KB
template <int D>
constexpr int R = D <= 128 ? 4 : D <= 256 ? 2 : 1;
template <int D>
constexpr int C = D <= 64 ? 4 : D <= 128 ? 2 : 1;
template <int D>
constexpr int W = D >= 64 ? 4 : D / 16;
template <int D>
constexpr int rows = 16 * R<D>;
template <int D>
constexpr int columns = 16 * C<D>;
template <int D>
constexpr int pitch = D + 4;
template <int D>
constexpr int weight_pitch = columns<D> + 4;
template <int D>
constexpr size_t bytes(int resident_tiles) {
    return ((resident_tiles * rows<D> + columns<D>)*pitch<D> + rows<D> * weight_pitch<D>)*sizeof(float);
}

template <int D>
using Scores = float[R<D>][C<D>];
template <int D>
using Sums = float[R<D>][D / 16];

// tile[r, e] = x[r, e] for r < left and e < d, else 0.
template <int D, int count, class T>
__device__ __forceinline__ void load_tile(float* tile, const T* x, int64_t row, int left, int d, bool aligned) {
    constexpr int units = D / 4;  // of 16 bytes
    for (int i = int(threadIdx.x); i < count * units; i += threads) {
        const int r = i / units, e = i % units * 4;
        float* to = tile + r * pitch<D> + e;
        const T* from = x + r * row + e;
        if constexpr (sizeof(T) == 2) {  // has to be widened on its way
            float wide[4];
            load_upto(wide, from, r < left ? d - e : 0, aligned);
            store_vector(to, Pack<float, 4>{wide[0], wide[1], wide[2], wide[3]});
        } else if (aligned) {
            const bool inside = r < left && e < d;
            copy_async<16>(to, inside ? from : x, inside ? 16 : 0);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const bool inside = r < left && e + j < d;
                copy_async<4>(to + j, inside ? from + j : x, inside ? 4 : 0);
            }
        }
    }
}

__device__ __forceinline__ void wait_for_tiles() {
    commit_copies();
    wait_copies<0>();
    __syncthreads();
}

// s = a bT. One chain of fused products and sums in the order of d, so that every kernel gets the same bits.
template <int D>
__device__ __forceinline__ void dots(Scores<D>& s, const float* a, const float* b, int d) {
    a += threadIdx.x / 16 * R<D> * pitch<D>;
    b += threadIdx.x % 16 * pitch<D>;
#pragma unroll
    for (int i = 0; i < R<D>; ++i)
#pragma unroll
        for (int j = 0; j < C<D>; ++j) s[i][j] = 0.0f;
#pragma unroll 1
    for (int e = 0; e < d; e += 4) {
        float x[R<D>][4], y[C<D>][4];
#pragma unroll
        for (int i = 0; i < R<D>; ++i) load(x[i], a + i * pitch<D> + e);
#pragma unroll
        for (int j = 0; j < C<D>; ++j) load(y[j], b + j * 16 * pitch<D> + e);
#pragma unroll
        for (int l = 0; l < 4; ++l)
#pragma unroll
            for (int i = 0; i < R<D>; ++i)
#pragma unroll
                for (int j = 0; j < C<D>; ++j) s[i][j] = fmaf(x[i][l], y[j][l], s[i][j]);
    }
}

// s[i][j] = value where `where` says so of its row and column.
template <int D, class Where>
__device__ __forceinline__ void set_where(Scores<D>& s, float value, const Where& where) {
#pragma unroll
    for (int j = 0; j < C<D>; ++j)
#pragma unroll
        for (int i = 0; i < R<D>; ++i)
            if (where(int(threadIdx.x) / 16 * R<D> + i, int(threadIdx.x) % 16 + 16 * j)) s[i][j] = value;
}

// Half a warp lays the weights of its rows side by side, for accumulate. A barrier has passed since those before were
// read.
template <int D>
__device__ __forceinline__ void share(float* weights, const Scores<D>& p) {
#pragma unroll
    for (int i = 0; i < R<D>; ++i)
#pragma unroll
        for (int j = 0; j < C<D>; ++j)
            weights[(threadIdx.x / 16 * R<D> + i) * weight_pitch<D> + threadIdx.x % 16 + 16 * j] = p[i][j];
    __syncwarp();
}

// o += p b, with p from `share`.
template <int D>
__device__ __forceinline__ void accumulate(Sums<D>& o, const float* weights, const float* b) {
    weights += threadIdx.x / 16 * R<D> * weight_pitch<D>;
    b += threadIdx.x % 16 * W<D>;
#pragma unroll 1
    for (int k = 0; k < columns<D>; k += 4) {
        float p[R<D>][4];
#pragma unroll
        for (int i = 0; i < R<D>; ++i) load(p[i], weights + i * weight_pitch<D> + k);
#pragma unroll
        for (int l = 0; l < 4; ++l)
#pragma unroll
            for (int j = 0; j < D / 16; j += W<D>) {
                float y[W<D>];
                load(y, b + (k + l) * pitch<D> + 16 * j);
#pragma unroll
                for (int i = 0; i < R<D>; ++i)
#pragma unroll
                    for (int w = 0; w < W<D>; ++w) o[i][j + w] = fmaf(p[i][l], y[w], o[i][j + w]);
            }
    }
}

// out[r, e] = factor[r] o for r < left, e < d
template <int D, class T>
__device__ __forceinline__ void store_rows(T* out, int64_t row, int left, int d, bool aligned, const Sums<D>& o,
                                           const float (&factor)[R<D>]) {
#pragma unroll
    for (int i = 0; i < R<D>; ++i) {
        const int r = int(threadIdx.x) / 16 * R<D> + i;
        if (r >= left) continue;
#pragma unroll
        for (int j = 0; j < D / 16; j += W<D>) {
            const int e = 16 * j + int(threadIdx.x) % 16 * W<D>;
            float y[W<D>];
#pragma unroll
            for (int w = 0; w < W<D>; ++w) y[w] = factor[i] * o[i][j + w];
            store_upto(out + r * row + e, y, d - e, aligned);
        }
    }
}

// ---- forward -----------------------------------------------------------------------------------------------------

template <int D, class T>
__global__ void __launch_bounds__(threads, D <= 128 ? 2 : 1)
    attention_forward_kernel(AttentionShape s, bool aligned, bool out_aligned, const T* __restrict__ q,
                             const T* __restrict__ k, const T* __restrict__ v, const bool* __restrict__ key_mask,
                             T* __restrict__ out, float* __restrict__ lse) {
    DYNAMIC_SHARED(float, q_tile);
    float *tile = q_tile + rows<D> * pitch<D>, *weights = tile + columns<D> * pitch<D>;
    const int d = int(s.d), x = int(threadIdx.x) % 16;
    const Place at = place(s.tq, rows<D>, s.heads), start = {0, at.head, at.sample};
    k += strided_at(s, s.k_batch, s.k_row, start);
    v += strided_at(s, s.v_batch, s.v_row, start);
    const int left = rows_left(s.tq, at.first, rows<D>);
    load_tile<D, rows<D>>(q_tile, q + strided_at(s, s.q_batch, s.q_row, at), s.q_row, left, d, aligned);

    Sums<D> o = {};
    float maximum[R<D>], sum[R<D>] = {};  // largest score so far; this thread's part of the sum
#pragma unroll
    for (int i = 0; i < R<D>; ++i) maximum[i] = lowest;
    const bool* mask = mask_of(s, key_mask, at.sample);
    for (int64_t key = 0, end = keys_end(s, at.first, rows<D>); key < end; key += columns<D>) {
        const int valid = rows_left(s.tk, key, columns<D>);
        load_tile<D, columns<D>>(tile, k + key * s.k_row, s.k_row, valid, d, aligned);
        wait_for_tiles();
        Scores<D> p;
        dots<D>(p, q_tile, tile, d);
        __syncthreads();
        load_tile<D, columns<D>>(tile, v + key * s.v_row, s.v_row, valid, d, aligned);
#pragma unroll
        for (int i = 0; i < R<D>; ++i)
#pragma unroll
            for (int j = 0; j < C<D>; ++j) p[i][j] = x + 16 * j < valid ? __fmul_rn(s.scale, p[i][j]) : -INFINITY;
        if (s.causal || mask) set_where<D>(p, -INFINITY, hidden(s, mask, at.first, key, valid));
#pragma unroll
        for (int i = 0; i < R<D>; ++i) {
            float most = maximum[i];
#pragma unroll
            for (int j = 0; j < C<D>; ++j) most = fmaxf(most, p[i][j]);
#pragma unroll
            for (int lanes = 8; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
            const float shrink = expf(maximum[i] - most);
            maximum[i] = most;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < C<D>; ++j) sum[i] += p[i][j] = expf(p[i][j] - most);
#pragma unroll
            for (int j = 0; j < D / 16; ++j) o[i][j] *= shrink;
        }
        share<D>(weights, p);
        wait_for_tiles();
        accumulate<D>(o, weights, tile);
        __syncthreads();
    }

    float factor[R<D>];
#pragma unroll
    for (int i = 0; i < R<D>; ++i) {
#pragma unroll
        for (int lanes = 8; lanes > 0; lanes /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], lanes);
        const bool none = mask && sum[i] == 0.0f;  // no key is seen: the result is 0
        factor[i] = none ? 0.0f : 1.0f / sum[i];
        const int r = int(threadIdx.x) / 16 * R<D> + i;
        if (x == 0 && r < left)
            lse[(at.sample * s.heads + at.head) * s.tq + at.first + r] = none ? 0.0f : maximum[i] + logf(sum[i]);
    }
    store_rows<D>(out + packed_at(s, s.tq, at), s.heads * s.d, left, d, out_aligned, o, factor);
}

// ---- backward ----------------------------------------------------------------------------------------------------

// p = exp(scale s - lse), the score rounded as in the forward pass.
__device__ __forceinline__ float probability(float score, float scale, float lse) {
    return expf(__fmul_rn(scale, score) - lse);
}

template <int D, class T>
__global__ void __launch_bounds__(threads, D <= 128 ? 2 : 1)
    attention_dq_kernel(AttentionShape s, bool aligned, bool out_aligned, const T* __restrict__ dout,
                        const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                        const bool* __restrict__ key_mask, const Stat* __restrict__ stats, T* __restrict__ dq) {
    DYNAMIC_SHARED(float, q_tile);
    float *dout_tile = q_tile + rows<D> * pitch<D>, *tile = dout_tile + rows<D> * pitch<D>,
          *weights = tile + columns<D> * pitch<D>;
    const int d = int(s.d), x = int(threadIdx.x) % 16;
    const Place at = place(s.tq, rows<D>, s.heads), start = {0, at.head, at.sample};
    const int64_t row = s.heads * s.d;
    k += strided_at(s, s.k_batch, s.k_row, start);
    v += strided_at(s, s.v_batch, s.v_row, start);
    const int left = rows_left(s.tq, at.first, rows<D>);
    load_tile<D, rows<D>>(q_tile, q + strided_at(s, s.q_batch, s.q_row, at), s.q_row, left, d, aligned);
    load_tile<D, rows<D>>(dout_tile, dout + packed_at(s, s.tq, at), row, left, d, aligned);
    Stat stat[R<D>];
    float factor[R<D>];
#pragma unroll
    for (int i = 0; i < R<D>; ++i) {
        const int64_t row_at = at.first + threadIdx.x / 16 * R<D> + i;
        stat[i] = stats[(at.sample * s.heads + at.head) * padded_queries(s.tq) + row_at];
        factor[i] = s.scale;
    }

    Sums<D> sum = {};
    const bool* mask = mask_of(s, key_mask, at.sample);
    for (int64_t key = 0, end = keys_end(s, at.first, rows<D>); key < end; key += columns<D>) {
        const int valid = rows_left(s.tk, key, columns<D>);
        load_tile<D, columns<D>>(tile, v + key * s.v_row, s.v_row, valid, d, aligned);
        wait_for_tiles();
        Scores<D> ds, p;
        dots<D>(ds, dout_tile, tile, d);
        __syncthreads();
        load_tile<D, columns<D>>(tile, k + key * s.k_row, s.k_row, valid, d, aligned);
        wait_for_tiles();
        dots<D>(p, q_tile, tile, d);
#pragma unroll
        for (int i = 0; i < R<D>; ++i)
#pragma unroll
            for (int j = 0; j < C<D>; ++j) {
                const float weight = probability(p[i][j], s.scale, stat[i].lse);
                ds[i][j] = x + 16 * j < valid ? weight * (ds[i][j] - stat[i].delta) : 0.0f;  // 3
            }
        if (s.causal || mask) set_where<D>(ds, 0.0f, hidden(s, mask, at.first, key, valid));
        share<D>(weights, ds);
        accumulate<D>(sum, weights, tile);  // 4
        __syncthreads();
    }
    store_rows<D>(dq + packed_at(s, s.tq, at), row, left, d, out_aligned, sum, factor);
}

template <int D, class T>
__global__ void __launch_bounds__(threads, D <= 64 ? 2 : 1)
    attention_dkdv_kernel(AttentionShape s, bool aligned, bool out_aligned, const T* __restrict__ dout,
                          const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                          const Stat* __restrict__ stats, T* __restrict__ dk, T* __restrict__ dv) {
    DYNAMIC_SHARED(float, k_tile);
    float *v_tile = k_tile + rows<D> * pitch<D>, *tile = v_tile + rows<D> * pitch<D>,
          *weights = tile + columns<D> * pitch<D>;
    const int d = int(s.d), x = int(threadIdx.x) % 16;
    const Place at = place(s.tk, rows<D>, s.heads), start = {0, at.head, at.sample};
    const int64_t row = s.heads * s.d;
    q += strided_at(s, s.q_batch, s.q_row, start);
    dout += packed_at(s, s.tq, start);
    stats += (at.sample * s.heads + at.head) * padded_queries(s.tq);
    const int left = rows_left(s.tk, at.first, rows<D>);
    load_tile<D, rows<D>>(k_tile, k + strided_at(s, s.k_batch, s.k_row, at), s.k_row, left, d, aligned);
    load_tile<D, rows<D>>(v_tile, v + strided_at(s, s.v_batch, s.v_row, at), s.v_row, left, d, aligned);
    wait_for_tiles();

    Sums<D> dk_sum = {}, dv_sum = {};
    // Causal queries before the first key see none of these.
    for (int64_t query = s.causal ? at.first / columns<D> * columns<D> : 0; query < s.tq; query += columns<D>) {
        const int valid = rows_left(s.tq, query, columns<D>);
        const auto load_q = [&] { load_tile<D, columns<D>>(tile, q + query * s.q_row, s.q_row, valid, d, aligned); };
        Stat stat[C<D>];
#pragma unroll
        for (int j = 0; j < C<D>; ++j) stat[j] = stats[query + x + 16 * j];
        load_q();
        wait_for_tiles();
        Scores<D> p, ds;
        dots<D>(p, k_tile, tile, d);
        __syncthreads();
        load_tile<D, columns<D>>(tile, dout + query * row, row, valid, d, aligned);
#pragma unroll
        for (int i = 0; i < R<D>; ++i)
#pragma unroll
            for (int j = 0; j < C<D>; ++j) p[i][j] = probability(p[i][j], s.scale, stat[j].lse);
        if (s.causal) {
            const Hidden hides = hidden(s, nullptr, query, at.first, left);
            set_where<D>(p, 0.0f, [&](int row, int column) { return hides(column, row); });
        }
        share<D>(weights, p);
        wait_for_tiles();
        accumulate<D>(dv_sum, weights, tile);  // 2
        dots<D>(ds, v_tile, tile, d);
        __syncthreads();
        load_q();
#pragma unroll
        for (int i = 0; i < R<D>; ++i)
#pragma unroll
            for (int j = 0; j < C<D>; ++j) ds[i][j] = p[i][j] * (ds[i][j] - stat[j].delta);  // 3
        share<D>(weights, ds);
        wait_for_tiles();
        accumulate<D>(dk_sum, weights, tile);  // 5
        __syncthreads();
    }
    float scale[R<D>], one[R<D>];
#pragma unroll
    for (int i = 0; i < R<D>; ++i) scale[i] = s.scale, one[i] = 1.0f;
    const int64_t to = packed_at(s, s.tk, at);
    store_rows<D>(dk + to, row, left, d, out_aligned, dk_sum, scale);
    store_rows<D>(dv + to, row, left, d, out_aligned, dv_sum, one);
}

}  // namespace float32
}  // namespace pydiff
