// Scaled dot-product attention, per sample and head (A. Vaswani et al., "Attention Is All You Need", 2017, equation 1):
//
//   S = scale Q K^T          (tq, tk)
//   P = softmax(S)           row by row: P[q, t] = exp(S[q, t] - lse[q]),   lse[q] = log sum_t exp(S[q, t])
//   out = P V                (tq, d)
//
// The scores are never stored whole: a block of queries meets one chunk of keys after the other, with the maximum and
// the sum of each query so far (T. Dao et al., "FlashAttention", arXiv:2205.14135, 2022, algorithm 1). The backward
// pass computes the same scores again, bit for bit: by the same product of the same factors. So it meets the weights of
// the forward pass even where logits are huge.
//
// Exponentials are powers of two here: q is multiplied by scale log2(e) once, and lse is kept as a logarithm to base 2.
//
// A block's scores are kept transposed, (keys, lanes): a query is a lane of a vector. So the maximum and the sum over
// the keys are plain vector operations, and no lane is idle however small the heads are. A lane's result depends on its
// own query only: it is the same in any batch and with any number of threads.
//
// An item of work is 256 queries of a head; backward it is a head, or where heads are few a part of its keys: a quarter
// or at least 256 of them.
//
// Array path: pydiff/ops/attention.py. Reference: pydiff/reference/attention.py.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "attention_products.h"
#include "gemm.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"
#include "simd_math.h"

namespace pydiff {
namespace {

constexpr int64_t block_vectors = 4, block_queries = block_vectors * simd_width;
// Scores of a block of queries with a chunk of keys. Small heads take longest over these, so 16 KB of them stay in the
// first-level cache; large heads take longest over sums of products, which should be long.
constexpr int64_t block_scores(int64_t d) { return d <= 8 ? 4096 : 16384; }
constexpr int64_t item_queries = 256;
constexpr float log2e = 1.44269504f;
constexpr float lowest = -3.40282347e38f;

enum Slot { keys_slot, values_slot, scores_slot, dscores_slot, columns_slot, rows_slot, dkdv_slot };

// Items claimed together; `work` is the multiplications of a product in an item. Narrow heads of a sample share lines
// of the cache, which one thread should read and write; but every thread should find some to claim, several times.
int64_t grain(int64_t items, int64_t work) {
    const int64_t worthwhile = 262144 / std::max<int64_t>(1, work), fair = items / (4 * threads());
    return std::max<int64_t>(1, std::min(worthwhile, fair));
}

// Calls f with the number of vectors, 1 to block_vectors, as a constant: a value per lane can then stay in a register.
template <class F>
void with_vectors(int64_t vectors, F&& f) {
    if (vectors == 1) return f(std::integral_constant<int, 1>());
    if (vectors == 2) return f(std::integral_constant<int, 2>());
    if (vectors == 3) return f(std::integral_constant<int, 3>());
    f(std::integral_constant<int, 4>());
}

// One head's rows side by side: where they lie, a power of two apart, they would compete for a few lines of the cache.
struct Rows {
    const float* begin;
    int64_t row;
    const float* at(int64_t i) const { return begin + i * row; }
};
Rows copy_rows(int64_t m, int64_t n, const Rows& a, float* b) {
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; j += simd_width) store_upto(b + i * n + j, load_upto(a.at(i) + j, n - j), n - j);
    return {b, n};
}

// Raises each lane's maximum to that of scores (keys, lanes); factor brings what was summed up so far to the new one.
template <int vectors>
void raise_maximum(int64_t keys, const float* scores, float* maximum, float* factor) {
    vfloat most[vectors];
    for (int v = 0; v < vectors; ++v) most[v] = load(maximum + v * simd_width);
    for (int64_t t = 0; t < keys; ++t)
        for (int v = 0; v < vectors; ++v) {
            const vfloat s = load(scores + (t * vectors + v) * simd_width);
            most[v] = s > most[v] ? s : most[v];
        }
    const Exp2 exp2;
    for (int v = 0; v < vectors; ++v) {
        store(factor + v * simd_width, exp2(load(maximum + v * simd_width) - most[v]));
        store(maximum + v * simd_width, most[v]);
    }
}

// scores from S to P sum = 2^(S - maximum), and sum = factor sum + these.
template <int vectors>
void exponentials(int64_t keys, const float* maximum, const float* factor, float* scores, float* sum) {
    const Exp2 exp2;
    vfloat most[vectors], total[vectors];
    for (int v = 0; v < vectors; ++v) {
        most[v] = load(maximum + v * simd_width);
        total[v] = load(factor + v * simd_width) * load(sum + v * simd_width);
    }
    for (int64_t t = 0; t < keys; ++t)
        for (int v = 0; v < vectors; ++v) {
            float* s = scores + (t * vectors + v) * simd_width;
            const vfloat p = exp2(load(s) - most[v]);
            total[v] += p;
            store(s, p);
        }
    for (int v = 0; v < vectors; ++v) store(sum + v * simd_width, total[v]);
}

// The same for small heads, with out^T = factor out^T + V^T P sum at once: a column of it stays in registers, and the
// products hide what the exponentials wait for.
template <int d>
void weigh_values(int64_t keys, int64_t lanes, const float* maximum, const float* factor, const float* scores,
                  const float* values, int64_t value_row, float* sum, float* result) {
    const Exp2 exp2;
    for (int64_t i = 0; i < lanes; i += simd_width) {
        const vfloat most = load(maximum + i), f = load(factor + i);
        vfloat total = f * load(sum + i), column[d];
        for (int e = 0; e < d; ++e) column[e] = f * load(result + e * lanes + i);
        for (int64_t t = 0; t < keys; ++t) {
            const vfloat p = exp2(load(scores + t * lanes + i) - most);
            total += p;
#pragma GCC unroll 8
            for (int e = 0; e < d; ++e) column[e] = multiply_add(broadcast(values[t * value_row + e]), p, column[e]);
        }
        store(sum + i, total);
        for (int e = 0; e < d; ++e) store(result + e * lanes + i, column[e]);
    }
}

// scores from S to P, dscores from dP to dS = P (dP - delta).
template <int vectors>
void softmax_backward(int64_t keys, const float* lse, const float* delta, float* scores, float* dscores) {
    const Exp2 exp2;
    vfloat log_sum[vectors], mean[vectors];
    for (int v = 0; v < vectors; ++v) {
        log_sum[v] = load(lse + v * simd_width);
        mean[v] = load(delta + v * simd_width);
    }
    for (int64_t t = 0; t < keys; ++t)
        for (int v = 0; v < vectors; ++v) {
            const int64_t i = (t * vectors + v) * simd_width;
            const vfloat p = exp2(load(scores + i) - log_sum[v]);
            store(scores + i, p);
            store(dscores + i, p * (load(dscores + i) - mean[v]));
        }
}

// a (rows, lanes) times the factor of each lane, or all of it times one.
void scale_lanes(int64_t rows, int64_t lanes, const float* factor, float* a) {
    for (int64_t i = 0; i < lanes; i += simd_width) {
        const vfloat f = load(factor + i);
        for (int64_t e = 0; e < rows; ++e) store(a + e * lanes + i, f * load(a + e * lanes + i));
    }
}
void scale_all(int64_t count, float factor, float* a) {
    for (int64_t i = 0; i < count; i += simd_width) store(a + i, factor * load(a + i));
}
void add_all(int64_t count, const float* a, float* b) {
    for (int64_t i = 0; i < count; i += simd_width) store(b + i, load(b + i) + load(a + i));
}

// `count` queries of one head.
void forward_item(const AttentionShape& s, const float* q, const float* k, const float* v, int64_t count, float* out,
                  float* lse) {
    const int64_t d = s.d;
    float* scores = scratch(scores_slot, static_cast<size_t>(block_scores(d)));
    float* panel = scratch(columns_slot, static_cast<size_t>(2 * d * block_queries));
    float maximum[block_queries], sum[block_queries], factor[block_queries];
    Rows keys{k, s.k_row}, values{v, s.v_row};
    if (count > block_queries) {  // else they are read once only
        keys = copy_rows(s.tk, d, keys, scratch(keys_slot, static_cast<size_t>(s.tk * d)));
        values = copy_rows(s.tk, d, values, scratch(values_slot, static_cast<size_t>(s.tk * d)));
    }
    for (int64_t begin = 0; begin < count; begin += block_queries) {
        const int64_t queries = std::min(block_queries, count - begin), lanes = panel_width(queries);
        float* result = panel + d * lanes;  // out^T (d, lanes), not yet divided by the sum
        pack_transposed(queries, d, q + begin * s.q_row, s.q_row, panel, lanes);
        scale_all(d * lanes, s.scale * log2e, panel);
        std::fill(maximum, maximum + lanes, lowest);
        std::fill(sum, sum + lanes, 0.0f);
        std::fill(result, result + d * lanes, 0.0f);
        const int64_t chunk = block_scores(d) / lanes;
        for (int64_t t = 0; t < s.tk; t += chunk) {
            const int64_t m = std::min(chunk, s.tk - t);
            multiply(Order::rows, m, lanes, d, keys.at(t), keys.row, panel, lanes, false, scores, lanes);
            with_vectors(lanes / simd_width, [&](auto n) { raise_maximum<n>(m, scores, maximum, factor); });
            if (d == 8) {
                weigh_values<8>(m, lanes, maximum, factor, scores, values.at(t), values.row, sum, result);
                continue;
            }
            with_vectors(lanes / simd_width, [&](auto n) { exponentials<n>(m, maximum, factor, scores, sum); });
            scale_lanes(d, lanes, factor, result);
            multiply(Order::columns, d, lanes, m, values.at(t), values.row, scores, lanes, true, result, lanes);
        }
        for (int64_t i = 0; i < lanes; i += simd_width) {
            const vfloat total = load(sum + i);
            store(maximum + i, load(maximum + i) + log(total) * log2e);
            store(sum + i, 1.0f / total);
        }
        std::copy(maximum, maximum + queries, lse + begin);
        scale_lanes(d, lanes, sum, result);
        transpose(d, queries, result, lanes, out + begin * s.heads * d, s.heads * d);
    }
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

// dk and dv of `count` keys, and what these keys add to dq: the sum of what each part of `most` keys adds, in order.
void backward_keys(const AttentionShape& s, const BackwardHead& h, int64_t first, int64_t count, int64_t most,
                   float* dq, int64_t dq_row) {
    const int64_t row = s.heads * s.d, d = s.d, width = row_width(d), rows = block_queries / rows_together(d);
    float* scores = scratch(scores_slot, static_cast<size_t>(block_scores(d)));
    float* dscores = scores + block_scores(d) / 2;
    float* panel = scratch(columns_slot, static_cast<size_t>(4 * d * block_queries));
    float* q_rows = scratch(rows_slot, static_cast<size_t>(2 * rows * width));
    float* dout_rows = q_rows + rows * width;
    float* dk = scratch(dkdv_slot, static_cast<size_t>(2 * count * width));
    float* dv = dk + count * width;
    Rows keys{h.k + first * s.k_row, s.k_row}, values{h.v + first * s.v_row, s.v_row};
    if (s.tq > block_queries) {
        keys = copy_rows(count, d, keys, scratch(keys_slot, static_cast<size_t>(count * d)));
        values = copy_rows(count, d, values, scratch(values_slot, static_cast<size_t>(count * d)));
    }
    float lse[block_queries], delta[block_queries];
    for (int64_t begin = 0; begin < s.tq; begin += block_queries) {
        const int64_t queries = std::min(block_queries, s.tq - begin), lanes = panel_width(queries);
        const float *q = h.q + begin * s.q_row, *dout = h.dout + begin * row, *out = h.out + begin * row;
        float *q_panel = panel, *dout_panel = panel + d * lanes, *dq_panel = dout_panel + d * lanes;
        // delta's terms are added up in the order of those of dP: a weight of one leaves exactly nothing of dP - delta.
        const Rows outs = copy_rows(queries, d, {out, row}, q_rows);
        pack_transposed(queries, d, outs.begin, outs.row, dq_panel, lanes);
        pack_both(queries, d, dout, row, dout_rows, dout_panel, lanes);
        for (int64_t i = 0; i < lanes; i += simd_width) {
            vfloat sum{};
            for (int64_t e = 0; e < d; ++e)
                sum = multiply_add(load(dout_panel + e * lanes + i), load(dq_panel + e * lanes + i), sum);
            store(delta + i, sum);
        }
        pack_both(queries, d, q, s.q_row, q_rows, q_panel, lanes);
        scale_all(d * lanes, s.scale * log2e, q_panel);
        std::copy(h.lse + begin, h.lse + begin + queries, lse);
        std::fill(lse + queries, lse + lanes, 0.0f);  // lanes without a query have finite weights, and rows of zeros
        const int64_t chunk = block_scores(d) / 2 / lanes;
        for (int64_t part = 0; part < count; part += most) {
            const int64_t end = std::min(part + most, count);
            float* sum = part == 0 ? dq_panel : dq_panel + d * lanes;
            for (int64_t t = part; t < end; t += chunk) {
                const int64_t m = std::min(chunk, end - t);
                multiply(Order::rows, m, lanes, d, keys.at(t), keys.row, q_panel, lanes, false, scores, lanes);
                multiply(Order::rows, m, lanes, d, values.at(t), values.row, dout_panel, lanes, false, dscores, lanes);
                with_vectors(lanes / simd_width,
                             [&](auto n) { softmax_backward<n>(m, lse, delta, scores, dscores); });  // (2)
                sum_lanes(m, d, queries, scores, lanes, dout_rows, begin > 0, dv + t * width);  // (1)
                sum_lanes(m, d, queries, dscores, lanes, q_rows, begin > 0, dk + t * width);    // (3)
                multiply(Order::columns, d, lanes, m, keys.at(t), keys.row, dscores, lanes, t > part, sum,
                         lanes);  // (4)
            }
            scale_all(d * lanes, s.scale, sum);
            if (part > 0) add_all(d * lanes, sum, dq_panel);
        }
        transpose(d, queries, dq_panel, lanes, dq + begin * dq_row, dq_row);
    }
    if (s.tq == 0) std::fill(dk, dk + 2 * count * width, 0.0f);
    unpack_rows(count, d, s.scale, dk, h.dk + first * row, row);
    unpack_rows(count, d, 1.0f, dv, h.dv + first * row, row);
}

// dq (tq, row) += partial (tq, d)
void add_rows(const AttentionShape& s, const float* partial, float* dq) {
    for (int64_t t = 0; t < s.tq; ++t)
        for (int64_t e = 0; e < s.d; ++e) dq[t * s.heads * s.d + e] += partial[t * s.d + e];
}

}  // namespace

template <>
void attention_forward(const AttentionShape& s, const float* q, const float* k, const float* v, float* out,
                       float* lse) {
    const int64_t blocks = ceil_div(s.tq, item_queries), work = std::min(item_queries, s.tq) * s.tk * s.d;
    const int64_t items = s.n * s.heads * blocks;
    parallel_for(items, grain(items, work), [&](int64_t item) {
        const int64_t begin = item % blocks * item_queries, head = item / blocks % s.heads, n = item / blocks / s.heads;
        const int64_t at = head * s.d;
        forward_item(s, q + n * s.q_batch + begin * s.q_row + at, k + n * s.k_batch + at, v + n * s.v_batch + at,
                     std::min(item_queries, s.tq - begin), out + (n * s.tq + begin) * s.heads * s.d + at,
                     lse + (n * s.heads + head) * s.tq + begin);
    });
}

template <>
void attention_backward(const AttentionShape& s, const float* dout, const float* q, const float* k, const float* v,
                        const float* out, const float* lse, float* dq, float* dk, float* dv) {
    if (s.d == 0) return;  // the outputs are empty, and sum_lanes writes whole vectors: at least one a row
    // The keys of a head are cut into parts. What they add to dq is added up in this order: block by block where there
    // are heads enough for all threads, else when all parts have been computed. The arithmetic is the same.
    const int64_t most = std::max<int64_t>(256, ceil_div(s.tk, 4)), parts = ceil_div(s.tk, most), row = s.heads * s.d;
    const auto head = [&](int64_t item) {
        const int64_t n = item / s.heads, at = item % s.heads * s.d;
        const int64_t query = n * s.tq * row + at, key = n * s.tk * row + at;
        return BackwardHead{dout + query, q + n * s.q_batch + at, k + n * s.k_batch + at, v + n * s.v_batch + at,
                            out + query,  lse + item * s.tq,      dq + query,             dk + key, dv + key};
    };
    const int64_t heads = s.n * s.heads, size = s.tq * s.d;
    if (parts == 1 || heads >= 2 * threads()) {
        parallel_for(heads, grain(heads, size * s.tk), [&](int64_t item) {
            const BackwardHead h = head(item);
            backward_keys(s, h, 0, s.tk, most, h.dq, row);
        });
        return;
    }
    std::vector<float> partials(static_cast<size_t>(heads * (parts - 1) * size));
    const auto partial = [&](int64_t item, int64_t part) {  // what every part but the first adds
        return partials.data() + (item * (parts - 1) + part - 1) * size;
    };
    parallel_for(heads * parts, 1, [&](int64_t i) {
        const BackwardHead h = head(i / parts);
        const int64_t part = i % parts, first = part * most, count = std::min(most, s.tk - first);
        backward_keys(s, h, first, count, most, part == 0 ? h.dq : partial(i / parts, part), part == 0 ? row : s.d);
    });
    parallel_for(heads, 1, [&](int64_t item) {
        for (int64_t part = 1; part < parts; ++part) add_rows(s, partial(item, part), head(item).dq);
    });
}

}  // namespace pydiff
