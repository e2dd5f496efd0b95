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
// A query that is causal sees the keys up to its own number: later ones are skipped, block by block, or get scores of
// -infinity. Keys that a mask hides are skipped where rows are copied: their values do not matter, and they cost
// nothing.
//
// An item of work is 256 queries of a head; backward it is a head, or where heads are few a part of its keys: a quarter
// or at least 256 of them.
//
// Array path: pydiff/ops/attention.py. Reference: pydiff/reference/attention.py.
#include <algorithm>
#include <cstring>
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

// The keys that may be seen among those from `first` up to `last` of one sample, by their numbers; all of them without
// a mask.
class Keys {
public:
    Keys(int64_t first, int64_t last, const bool* mask) : first_(first), count_(last - first), masked_(mask) {
        if (!mask) return;
        for (int64_t t = first; t < last; ++t)
            if (mask[t]) numbers_.push_back(t);
        count_ = static_cast<int64_t>(numbers_.size());
    }
    int64_t count() const { return count_; }
    bool all() const { return !masked_; }
    int64_t number(int64_t i) const { return masked_ ? numbers_[static_cast<size_t>(i)] : first_ + i; }
    // How many of them have numbers below `end`.
    int64_t below(int64_t end) const {
        if (!masked_) return std::clamp<int64_t>(end - first_, 0, count_);
        return std::lower_bound(numbers_.begin(), numbers_.end(), end) - numbers_.begin();
    }

private:
    int64_t first_, count_;
    bool masked_;
    std::vector<int64_t> numbers_;
};

// One head's rows side by side: where they lie, a power of two apart, they would compete for a few lines of the cache.
struct Rows {
    const float* begin;
    int64_t row;
    const float* at(int64_t i) const { return begin + i * row; }
};
// So would rows of 512 floats, which get a line more.
int64_t copied_row(int64_t d) { return d >= 128 && d % 64 == 0 ? d + 16 : d; }
void copy_row(int64_t n, const float* a, float* b) {
    for (int64_t j = 0; j < n; j += simd_width) store_upto(b + j, load_upto(a + j, n - j), n - j);
}
Rows copy_rows(int64_t m, int64_t n, const Rows& a, float* b) {
    for (int64_t i = 0; i < m; ++i) copy_row(n, a.at(i), b + i * n);
    return {b, n};
}
// Rows of d floats of `count` keys from the i-th on.
Rows copy_keys(const Keys& keys, int64_t i, int64_t count, int64_t d, const Rows& a, float* b) {
    const int64_t row = copied_row(d);
    for (int64_t t = 0; t < count; ++t) copy_row(d, a.at(keys.number(i + t)), b + t * row);
    return {b, row};
}

// The same as multiply_packed reads them: tile_rows channels of all keys, then the next ones. Of rows that lie far apart
// a product would need a line each for every step, and memory does not see them coming.
void pack_values(const Keys& keys, int64_t i, int64_t count, int64_t d, const Rows& a, float* b) {
    for (int64_t t = 0; t < count; ++t) {
        const float* row = a.at(keys.number(i + t));
        float* to = b + t * tile_rows;
        int64_t e = 0;
        for (; e + tile_rows <= d; e += tile_rows) std::memcpy(to + e * count, row + e, tile_rows * sizeof(float));
        std::copy(row + e, row + d, to + e * count);
    }
}

// Causal: scores (count, lanes) of the keys from the i-th on become -infinity where the key comes after the query, which
// is `query` in the first lane and one more in each that follows.
void hide_later(const Keys& keys, int64_t i, int64_t count, int64_t query, int64_t lanes, float* scores) {
    for (int64_t t = count - 1; t >= 0; --t) {
        const int64_t later = std::min(lanes, keys.number(i + t) - query);
        if (later <= 0) return;  // nor do the keys before
        std::fill(scores + t * lanes, scores + t * lanes + later, -__builtin_inff());
    }
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

// The keys that the last of `queries` queries from `query` on sees, among `keys`: none of them sees more.
int64_t seen(const AttentionShape& s, const Keys& keys, int64_t query, int64_t queries) {
    return s.causal ? keys.below(query + queries) : keys.count();
}

// A block of at most block_queries queries on their way through the keys.
struct Block {
    int64_t begin, queries, keys;  // the first; how many; how many keys they see
    float *panel, *result;         // scaled q^T, and out^T not yet divided by the sum; (d, lanes)
    float maximum[block_queries], sum[block_queries];
};

// `count` blocks of queries of a head, all with as many lanes, meet one chunk of keys after the other: what is read of a
// chunk is then in the cache for all of them.
void forward_blocks(const AttentionShape& s, const Keys& keys, const Rows& k, const Rows& v, int64_t lanes,
                    int64_t count, Block* blocks) {
    const int64_t d = s.d, chunk = block_scores(d) / lanes, most = blocks[count - 1].keys;
    const bool copied = count > 1 || !keys.all();  // else they are read once only
    float* scores = scratch(scores_slot, static_cast<size_t>(block_scores(d)));
    float factor[block_queries];
    for (int64_t t = 0; t < most; t += chunk) {
        const int64_t m = std::min(chunk, most - t);
        Rows k_rows{k.at(keys.number(t)), k.row}, v_rows{v.at(keys.number(t)), v.row};
        float* values = nullptr;
        if (copied) {
            const auto size = static_cast<size_t>(m * (copied_row(d) + tile_rows));
            values = scratch(values_slot, size);
            k_rows = copy_keys(keys, t, m, d, k, scratch(keys_slot, size));
            if (d == 8)
                v_rows = copy_keys(keys, t, m, d, v, values);
            else
                pack_values(keys, t, m, d, v, values);
        }
        for (Block* block = blocks; block < blocks + count; ++block) {
            const int64_t here = std::min(m, block->keys - t);
            if (here <= 0) continue;
            multiply(Order::rows, here, lanes, d, k_rows.begin, k_rows.row, block->panel, lanes, false, scores, lanes);
            if (s.causal) hide_later(keys, t, here, block->begin, lanes, scores);
            with_vectors(lanes / simd_width,
                         [&](auto n) { raise_maximum<n>(here, scores, block->maximum, factor); });
            if (d == 8) {
                weigh_values<8>(here, lanes, block->maximum, factor, scores, v_rows.begin, v_rows.row, block->sum,
                                block->result);
                continue;
            }
            with_vectors(lanes / simd_width,
                         [&](auto n) { exponentials<n>(here, block->maximum, factor, scores, block->sum); });
            scale_lanes(d, lanes, factor, block->result);
            if (copied)
                multiply_packed(d, lanes, here, values, m, scores, block->result);
            else
                multiply(Order::columns, d, lanes, here, v_rows.begin, v_rows.row, scores, lanes, true, block->result,
                         lanes);
        }
    }
}

// `count` queries of one head from `first` on.
void forward_item(const AttentionShape& s, const Keys& keys, const float* q, const Rows& k, const Rows& v,
                  int64_t first, int64_t count, float* out, float* lse) {
    const int64_t d = s.d, row = s.heads * d;
    float* memory = scratch(columns_slot, static_cast<size_t>(2 * d * item_queries));
    Block blocks[item_queries / block_queries];
    const auto lanes_of = [](const Block& block) { return panel_width(block.queries); };
    int64_t all = 0;
    for (int64_t begin = first; begin < first + count; begin += block_queries, ++all) {
        Block& block = blocks[all];
        const int64_t queries = std::min(block_queries, first + count - begin), lanes = panel_width(queries);
        block.begin = begin, block.queries = queries, block.keys = seen(s, keys, begin, queries);
        block.panel = memory, block.result = memory + d * lanes;
        memory += 2 * d * lanes;
        pack_transposed(queries, d, q + begin * s.q_row, s.q_row, block.panel, lanes);
        scale_all(d * lanes, s.scale * log2e, block.panel);
        std::fill(block.maximum, block.maximum + lanes, lowest);
        std::fill(block.sum, block.sum + lanes, 0.0f);
        std::fill(block.result, block.result + d * lanes, 0.0f);
    }
    const int64_t whole = count / block_queries;
    if (whole > 0) forward_blocks(s, keys, k, v, block_queries, whole, blocks);
    if (whole < all) forward_blocks(s, keys, k, v, lanes_of(blocks[whole]), 1, blocks + whole);
    for (Block* block = blocks; block < blocks + all; ++block) {
        const int64_t lanes = lanes_of(*block);
        for (int64_t i = 0; i < lanes; i += simd_width) {
            const vfloat total = load(block->sum + i);
            const vint none = total == 0.0f;
            store(block->maximum + i, none ? vfloat{} : load(block->maximum + i) + log(total) * log2e);
            store(block->sum + i, none ? vfloat{} : 1.0f / total);
        }
        std::copy(block->maximum, block->maximum + block->queries, lse + block->begin);
        scale_lanes(d, lanes, block->sum, block->result);
        transpose(d, block->queries, block->result, lanes, out + block->begin * row, row);
    }
}

// One head of one sample. With dP = dout V^T and delta[q] = sum_t P[q, t] dP[q, t] = sum_e dout[q, e] out[q, e]:
//   (1) dV = P^T dout
//   (2) dS = P (dP - delta)
//   (3) dK = scale dS^T Q
//   (4) dQ = scale dS K
struct BackwardHead {
    const float *dout, *q, *k, *v, *out, *lse;
    const bool* key_mask;
    float *dq, *dk, *dv;
};

// to (tk, row) of `count` keys from `first` on: factor times the sums of those that are seen, 0 for the others.
void unpack_keys(const AttentionShape& s, const Keys& keys, int64_t first, int64_t count, float factor,
                 const float* sums, float* to) {
    const int64_t row = s.heads * s.d, width = row_width(s.d);
    if (keys.all()) return unpack_rows(count, s.d, factor, sums, to + first * row, row);
    for (int64_t t = first; t < first + count; ++t) std::fill(to + t * row, to + t * row + s.d, 0.0f);
    for (int64_t i = 0; i < keys.count(); ++i)
        unpack_rows(1, s.d, factor, sums + i * width, to + keys.number(i) * row, row);
}

// dk and dv of `count` keys, and what these keys add to dq: the sum of what each part of `most` keys adds, in order.
void backward_keys(const AttentionShape& s, const BackwardHead& h, int64_t first, int64_t count, int64_t most,
                   float* dq, int64_t dq_row) {
    const int64_t row = s.heads * s.d, d = s.d, width = row_width(d), rows = block_queries / rows_together(d);
    float* scores = scratch(scores_slot, static_cast<size_t>(block_scores(d)));
    float* dscores = scores + block_scores(d) / 2;
    float* panel = scratch(columns_slot, static_cast<size_t>(4 * d * block_queries));
    float* q_rows = scratch(rows_slot, static_cast<size_t>(2 * rows * width));
    float* dout_rows = q_rows + rows * width;
    const Keys seen_keys(first, first + count, h.key_mask);
    const int64_t all = seen_keys.count();
    float* dk = scratch(dkdv_slot, static_cast<size_t>(2 * all * width));
    float* dv = dk + all * width;
    // A causal block meets the first of the keys only, so what it adds to is there before.
    const bool ahead = s.causal || s.tq == 0;
    if (ahead) std::fill(dk, dk + 2 * all * width, 0.0f);
    Rows keys{h.k + first * s.k_row, s.k_row}, values{h.v + first * s.v_row, s.v_row};
    if (s.tq > block_queries || !seen_keys.all()) {
        const auto size = static_cast<size_t>(all * copied_row(d));
        keys = copy_keys(seen_keys, 0, all, d, {h.k, s.k_row}, scratch(keys_slot, size));
        values = copy_keys(seen_keys, 0, all, d, {h.v, s.v_row}, scratch(values_slot, size));
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
        const int64_t chunk = block_scores(d) / 2 / lanes, here = seen(s, seen_keys, begin, queries);
        const bool add = ahead || begin > 0;
        for (int64_t part = 0; part < count; part += most) {
            const int64_t start = std::min(here, seen_keys.below(first + part)),
                          end = std::min(here, seen_keys.below(first + part + most));
            float* sum = part == 0 ? dq_panel : dq_panel + d * lanes;
            for (int64_t t = start; t < end; t += chunk) {
                const int64_t m = std::min(chunk, end - t);
                multiply(Order::rows, m, lanes, d, keys.at(t), keys.row, q_panel, lanes, false, scores, lanes);
                if (s.causal) hide_later(seen_keys, t, m, begin, lanes, scores);
                multiply(Order::rows, m, lanes, d, values.at(t), values.row, dout_panel, lanes, false, dscores, lanes);
                with_vectors(lanes / simd_width,
                             [&](auto n) { softmax_backward<n>(m, lse, delta, scores, dscores); });  // (2)
                sum_lanes(m, d, queries, scores, lanes, dout_rows, add, dv + t * width);  // (1)
                sum_lanes(m, d, queries, dscores, lanes, q_rows, add, dk + t * width);    // (3)
                multiply(Order::columns, d, lanes, m, keys.at(t), keys.row, dscores, lanes, t > start, sum,
                         lanes);  // (4)
            }
            if (start == end) std::fill(sum, sum + d * lanes, 0.0f);
            scale_all(d * lanes, s.scale, sum);
            if (part > 0) add_all(d * lanes, sum, dq_panel);
        }
        transpose(d, queries, dq_panel, lanes, dq + begin * dq_row, dq_row);
    }
    unpack_keys(s, seen_keys, first, count, s.scale, dk, h.dk);
    unpack_keys(s, seen_keys, first, count, 1.0f, dv, h.dv);
}

// dq (tq, row) += partial (tq, d)
void add_rows(const AttentionShape& s, const float* partial, float* dq) {
    for (int64_t t = 0; t < s.tq; ++t)
        for (int64_t e = 0; e < s.d; ++e) dq[t * s.heads * s.d + e] += partial[t * s.d + e];
}

}  // namespace

template <>
void attention_forward(const AttentionShape& s, const float* q, const float* k, const float* v, const bool* key_mask,
                       float* out, float* lse) {
    const int64_t blocks = ceil_div(s.tq, item_queries), work = std::min(item_queries, s.tq) * s.tk * s.d;
    const int64_t items = s.n * s.heads * blocks;
    parallel_for(items, grain(items, work), [&](int64_t item) {
        const int64_t begin = item % blocks * item_queries, head = item / blocks % s.heads, n = item / blocks / s.heads;
        const int64_t at = head * s.d;
        const Keys keys(0, s.tk, key_mask ? key_mask + n * s.tk : nullptr);
        forward_item(s, keys, q + n * s.q_batch + at, {k + n * s.k_batch + at, s.k_row},
                     {v + n * s.v_batch + at, s.v_row}, begin, std::min(item_queries, s.tq - begin),
                     out + n * s.tq * s.heads * s.d + at, lse + (n * s.heads + head) * s.tq);
    });
}

template <>
void attention_backward(const AttentionShape& s, const float* dout, const float* q, const float* k, const float* v,
                        const bool* key_mask, const float* out, const float* lse, float* dq, float* dk, float* dv) {
    if (s.d == 0) return;  // the outputs are empty, and sum_lanes writes whole vectors: at least one a row
    // The keys of a head are divided into parts. Their contributions to dq are summed in this order: block by block
    // where there are heads enough for all threads, else when all parts have been computed. The arithmetic is the same.
    const int64_t most = std::max<int64_t>(256, ceil_div(s.tk, 4)), parts = ceil_div(s.tk, most), row = s.heads * s.d;
    const auto head = [&](int64_t item) {
        const int64_t n = item / s.heads, at = item % s.heads * s.d;
        const int64_t query = n * s.tq * row + at, key = n * s.tk * row + at;
        return BackwardHead{dout + query,         q + n * s.q_batch + at,
                            k + n * s.k_batch + at, v + n * s.v_batch + at,
                            out + query,          lse + item * s.tq,
                            key_mask ? key_mask + n * s.tk : nullptr,
                            dq + query,           dk + key,
                            dv + key};
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
