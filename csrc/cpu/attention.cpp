// Scaled dot-product attention, per sample and head (A. Vaswani et al., "Attention Is All You Need", 2017, equation 1):
//
//   S = scale Q K^T          (tq, tk)
//   P = softmax(S)           row by row: P[q, t] = exp(S[q, t] - lse[q]),   lse[q] = log sum_t exp(S[q, t])
//   out = P V                (tq, d)
//
// The scores are never stored whole: a block of queries keeps its own, and the backward pass recomputes P from lse
// (T. Dao et al., "FlashAttention", arXiv:2205.14135, 2022; here with whole rows, so nothing is rescaled).
//
// The scores of a block are kept transposed, (tk, queries): a query is a lane of a vector. So the maximum and the sum
// over the keys are plain vector operations, no lane is idle however small the heads are, and K and V are read where
// they lie. A lane's result depends on its own query only: it is the same in any batch and with any number of threads.
#include <algorithm>
#include <type_traits>

#include "gemm.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"
#include "simd_math.h"

namespace pydiff {
namespace {

constexpr int64_t block_queries = tile_columns;

enum Slot { scores_slot, dscores_slot, columns_slot, rows_slot, dk_slot, dv_slot };

// Calls f with the number of vectors, 1 to tile_vectors, as a constant: one value per lane can then stay in a register.
template <class F>
void with_vectors(int64_t vectors, F&& f) {
    if (vectors == 1) return f(std::integral_constant<int, 1>());
    if constexpr (tile_vectors == 4) {
        if (vectors == 3) return f(std::integral_constant<int, 3>());
        if (vectors == 4) return f(std::integral_constant<int, 4>());
    }
    f(std::integral_constant<int, 2>());
}

// scores (tk, lanes) from S / scale to exp(S - max), and each lane's maximum and sum over the keys.
template <int vectors>
void softmax(int64_t tk, float scale, float* scores, float* maximum, float* sum) {
    constexpr int64_t lanes = vectors * simd_width;
    vfloat most[vectors], total[vectors] = {};
    for (int v = 0; v < vectors; ++v) most[v] = scale * load(scores + v * simd_width);
    for (int64_t t = 1; t < tk; ++t)
        for (int v = 0; v < vectors; ++v) {
            const vfloat s = scale * load(scores + t * lanes + v * simd_width);
            most[v] = s > most[v] ? s : most[v];
        }
    for (int64_t t = 0; t < tk; ++t)
        for (int v = 0; v < vectors; ++v) {
            float* s = scores + t * lanes + v * simd_width;
            const vfloat p = exp(scale * load(s) - most[v]);
            total[v] += p;
            store(s, p);
        }
    for (int v = 0; v < vectors; ++v) {
        store(maximum + v * simd_width, most[v]);
        store(sum + v * simd_width, total[v]);
    }
}

// scores from S / scale to P, dscores from dP to dS = P (dP - delta).
template <int vectors>
void softmax_backward(int64_t tk, float scale, const float* lse, const float* delta, float* scores, float* dscores) {
    vfloat log_sum[vectors], mean[vectors];
    for (int v = 0; v < vectors; ++v) {
        log_sum[v] = load(lse + v * simd_width);
        mean[v] = load(delta + v * simd_width);
    }
    for (int64_t t = 0; t < tk; ++t)
        for (int v = 0; v < vectors; ++v) {
            const int64_t i = (t * vectors + v) * simd_width;
            const vfloat p = exp(scale * load(scores + i) - log_sum[v]);
            store(scores + i, p);
            store(dscores + i, p * (load(dscores + i) - mean[v]));
        }
}

// rows[i, e] = columns[e, i] * factor[i], for i < m, e < d.
void unpack_transposed(int64_t m, int64_t d, const float* columns, int64_t lanes, const float* factor, float* rows,
                       int64_t row) {
    for (int64_t i = 0; i < m; ++i)
        for (int64_t e = 0; e < d; ++e) rows[i * row + e] = columns[e * lanes + i] * factor[i];
}

void forward_block(const AttentionShape& s, const float* q, const float* k, const float* v, int64_t queries, float* out,
                   float* lse) {
    const int64_t lanes = panel_width(queries);
    float* scores = scratch(scores_slot, static_cast<size_t>(s.tk * lanes));  // (tk, lanes)
    float* panel = scratch(columns_slot, static_cast<size_t>(s.d * lanes));   // (d, lanes): q^T, then out^T
    float maximum[block_queries], sum[block_queries];
    pack_transposed(queries, s.d, q, s.q_row, panel, lanes);
    gemm_panel(Order::rows, s.tk, lanes, s.d, k, s.k_row, panel, lanes, {}, scores, lanes);
    with_vectors(lanes / simd_width, [&](auto n) { softmax<n>(s.tk, s.scale, scores, maximum, sum); });
    gemm_panel(Order::columns, s.d, lanes, s.tk, v, s.v_row, scores, lanes, {}, panel, lanes);
    for (int64_t i = 0; i < lanes; i += simd_width) {
        const vfloat total = load(sum + i);
        store(maximum + i, load(maximum + i) + log(total));
        store(sum + i, 1.0f / total);
    }
    std::copy(maximum, maximum + queries, lse);
    unpack_transposed(queries, s.d, panel, lanes, sum, out, s.heads * s.d);
}

// One head of one sample. With dP = dout V^T and delta[q] = sum_t P[q, t] dP[q, t] = sum_e dout[q, e] out[q, e]:
//   (1) dV = P^T dout
//   (2) dS = P (dP - delta)
//   (3) dK = scale dS^T Q
//   (4) dQ = scale dS K
struct BackwardHead {
    const float *dout, *q, *k, *v, *out, *lse;
    float *dq, *dk, *dv;
};

void backward_head(const AttentionShape& s, const BackwardHead& h) {
    const int64_t row = s.heads * s.d, width = panel_width(s.d), most = block_queries;
    float* scores = scratch(scores_slot, static_cast<size_t>(s.tk * most));    // (tk, lanes)
    float* dscores = scratch(dscores_slot, static_cast<size_t>(s.tk * most));  // (tk, lanes)
    float* columns = scratch(columns_slot, static_cast<size_t>(s.d * most));   // (d, lanes): q^T, dout^T, dq^T in turn
    float* rows = scratch(rows_slot, static_cast<size_t>(most * width));       // (queries, width): dout, then q
    float* dk = scratch(dk_slot, static_cast<size_t>(s.tk * width));           // (tk, width), not yet scaled
    float* dv = scratch(dv_slot, static_cast<size_t>(s.tk * width));           // (tk, width)
    float lse[block_queries] = {}, delta[block_queries] = {}, scale[block_queries];
    std::fill(scale, scale + block_queries, s.scale);
    for (int64_t begin = 0; begin < s.tq; begin += block_queries) {
        const int64_t queries = std::min(block_queries, s.tq - begin), lanes = panel_width(queries);
        const float *q = h.q + begin * s.q_row, *dout = h.dout + begin * row, *out = h.out + begin * row;
        const Start sum_blocks{nullptr, begin > 0};
        for (int64_t i = 0; i < queries; ++i) {
            lse[i] = h.lse[begin + i];
            delta[i] = 0.0f;
            for (int64_t e = 0; e < s.d; ++e) delta[i] += dout[i * row + e] * out[i * row + e];
        }
        pack_transposed(queries, s.d, q, s.q_row, columns, lanes);
        gemm_panel(Order::rows, s.tk, lanes, s.d, h.k, s.k_row, columns, lanes, {}, scores, lanes);
        pack_transposed(queries, s.d, dout, row, columns, lanes);
        gemm_panel(Order::rows, s.tk, lanes, s.d, h.v, s.v_row, columns, lanes, {}, dscores, lanes);
        with_vectors(lanes / simd_width,
                     [&](auto n) { softmax_backward<n>(s.tk, s.scale, lse, delta, scores, dscores); });  // (2)
        pack_panel(queries, s.d, dout, row, rows);
        for (int64_t e = 0; e < width; e += tile_columns)  // (1)
            gemm_panel(Order::rows, s.tk, std::min<int64_t>(tile_columns, width - e), queries, scores, lanes, rows + e,
                       width, sum_blocks, dv + e, width);
        pack_panel(queries, s.d, q, s.q_row, rows);
        for (int64_t e = 0; e < width; e += tile_columns)  // (3)
            gemm_panel(Order::rows, s.tk, std::min<int64_t>(tile_columns, width - e), queries, dscores, lanes, rows + e,
                       width, sum_blocks, dk + e, width);
        gemm_panel(Order::columns, s.d, lanes, s.tk, h.k, s.k_row, dscores, lanes, {}, columns, lanes);  // (4)
        unpack_transposed(queries, s.d, columns, lanes, scale, h.dq + begin * row, row);
    }
    for (int64_t t = 0; t < s.tk; ++t)
        for (int64_t e = 0; e < s.d; ++e) {
            h.dk[t * row + e] = s.tq > 0 ? s.scale * dk[t * width + e] : 0.0f;
            h.dv[t * row + e] = s.tq > 0 ? dv[t * width + e] : 0.0f;
        }
}

}  // namespace

void attention_forward(const AttentionShape& s, const float* q, const float* k, const float* v, float* out,
                       float* lse) {
    const int64_t blocks = ceil_div(s.tq, block_queries);
    parallel_for(s.n * s.heads * blocks, 1, [&](int64_t item) {
        const int64_t begin = item % blocks * block_queries, head = item / blocks % s.heads,
                      n = item / blocks / s.heads;
        const int64_t at = head * s.d;
        forward_block(s, q + n * s.q_batch + begin * s.q_row + at, k + n * s.k_batch + at, v + n * s.v_batch + at,
                      std::min(block_queries, s.tq - begin), out + (n * s.tq + begin) * s.heads * s.d + at,
                      lse + (n * s.heads + head) * s.tq + begin);
    });
}

void attention_backward(const AttentionShape& s, const float* dout, const float* q, const float* k, const float* v,
                        const float* out, const float* lse, float* dq, float* dk, float* dv) {
    parallel_for(s.n * s.heads, 1, [&](int64_t item) {
        const int64_t head = item % s.heads, n = item / s.heads, at = head * s.d;
        const int64_t query = n * s.tq * s.heads * s.d + at, key = n * s.tk * s.heads * s.d + at;
        backward_head(s, {dout + query, q + n * s.q_batch + at, k + n * s.k_batch + at, v + n * s.v_batch + at,
                          out + query, lse + (n * s.heads + head) * s.tq, dq + query, dk + key, dv + key});
    });
}

}  // namespace pydiff
