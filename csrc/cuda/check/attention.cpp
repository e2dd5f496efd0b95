// csrc/cuda/attention.cu and csrc/cpu/attention.cpp against their equations.
#include "check.h"

namespace pydiff::check {
namespace {

// packed: q, k and v lie side by side in every row, as a projection leaves them (then tq = tk). masked: every third key is
// hidden, and all of the first sample's.
template <class T>
void check_attention(int64_t n, int64_t tq, int64_t tk, int64_t heads, int64_t d, bool packed, bool causal = false,
                     bool masked = false) {
    const int64_t c = heads * d, row = packed ? 3 * c : c;
    const float scale = d ? float(1.0 / std::sqrt(double(d))) : 1.0f;
    const AttentionShape s{n, tq, tk, heads, d, tq * row, row, tk * row, row, tk * row, row, scale, causal};
    const int64_t behind_k = packed ? c : n * tq * c, behind_v = packed ? 2 * c : n * (tq + tk) * c;
    Numbers qkv = random_numbers(n * (tq + 2 * tk) * c, 1), dout = random_numbers(n * tq * c, 2);
    for (double& x : qkv) x *= 2.0;
    const Array<T> qkv_(qkv), dout_(dout);
    const T *const q_ = qkv_, *const k_ = qkv_ + behind_k, *const v_ = qkv_ + behind_v;
    const double *const q = qkv.data(), *const k = q + behind_k, *const v = q + behind_v;
    Numbers mask(n * tk);
    for (int64_t i = 0; i < n * tk; ++i) mask[i] = !masked || (i >= tk && i % 3 > 0);
    const Array<unsigned char> mask_(mask);
    const bool* const key_mask = masked ? reinterpret_cast<const bool*>(static_cast<unsigned char*>(mask_)) : nullptr;

    Numbers out(n * tq * c), lse(n * heads * tq), dq(n * tq * c), dk(n * tk * c), dv(n * tk * c);
    const auto every_row = [&](auto visit) {  // visit(sample, head, row of q, scores)
        for (int64_t i = 0; i < n; ++i)
            for (int64_t h = 0; h < heads; ++h)
                for (int64_t a = 0; a < tq; ++a) {
                    Numbers score(tk);
                    for (int64_t b = 0; b < tk; ++b)
                        if ((causal && b > a) || !mask[i * tk + b])
                            score[b] = -HUGE_VAL;
                        else
                            for (int64_t e = h * d; e < h * d + d; ++e)
                                score[b] += scale * q[i * s.q_batch + a * row + e] * k[i * s.k_batch + b * row + e];
                    visit(i, h, a, score);
                }
    };
    every_row([&](int64_t i, int64_t h, int64_t a, const Numbers& score) {
        double sum = 0.0;
        for (double x : score) sum += std::exp(x);
        if (sum == 0.0) return;  // no key is seen
        lse[(i * heads + h) * tq + a] = std::log(sum);
        for (int64_t b = 0; b < tk; ++b)
            for (int64_t e = h * d; e < h * d + d; ++e)
                out[(i * tq + a) * c + e] += std::exp(score[b]) / sum * v[i * s.v_batch + b * row + e];
    });
    const Array<T> out_(out);
    Numbers kept = lse;  // as the kernels keep it: to base 2 on the CPU
    for (double& x : kept) x /= on_cpu ? std::log(2.0) : 1.0;
    const Array<float> lse_(kept);
    every_row([&](int64_t i, int64_t h, int64_t a, const Numbers& score) {
        const int64_t at = (i * tq + a) * c;
        double delta = 0.0;
        for (int64_t e = h * d; e < h * d + d; ++e) delta += dout[at + e] * out[at + e];
        for (int64_t b = 0; b < tk; ++b) {
            const double p = std::exp(score[b] - lse[(i * heads + h) * tq + a]);
            double dp = 0.0;
            for (int64_t e = h * d; e < h * d + d; ++e) dp += dout[at + e] * v[i * s.v_batch + b * row + e];
            const double dscore = p * (dp - delta) * scale;
            for (int64_t e = h * d; e < h * d + d; ++e) {
                dv[(i * tk + b) * c + e] += p * dout[at + e];
                dq[at + e] += dscore * k[i * s.k_batch + b * row + e];
                dk[(i * tk + b) * c + e] += dscore * q[i * s.q_batch + a * row + e];
            }
        }
    });

    const auto label = [&](const char* op) { return name(op, sizeof(T), {n, tq, tk, heads, d, packed, causal, masked}); };
    judge(label("attention_forward"), {out, kept}, tolerance<T>, [&] {
        const Array<T> out_(out.size());
        const Array<float> lse_(lse.size());
        launch(attention_forward<T>, s, q_, k_, v_, key_mask, out_, lse_);
        return std::vector<Numbers>{out_.read(), lse_.read()};
    });
    judge(label("attention_backward"), {dq, dk, dv}, tolerance<T>, [&] {
        const Array<T> dq_(dq.size()), dk_(dk.size()), dv_(dv.size());
        launch_in(attention_backward_workspace(s), attention_backward<T>, s, dout_, q_, k_, v_, key_mask, out_, lse_,
                  dq_, dk_, dv_);
        return std::vector<Numbers>{dq_.read(), dk_.read(), dv_.read()};
    });
}

template <class T>
void check_attention() {
    check_attention<T>(0, 4, 4, 1, 8, true);
    check_attention<T>(2, 5, 7, 2, 0, false);  // no channels
    check_attention<T>(1, 0, 7, 1, 8, false);
    check_attention<T>(1, 5, 7, 1, 3, false);
    check_attention<T>(2, 17, 17, 2, 8, true);
    check_attention<T>(1, 20, 36, 1, 40, false);
    check_attention<T>(1, 33, 33, 1, 64, true);
    check_attention<T>(1, 33, 40, 1, 8, false, true);
    check_attention<T>(2, 20, 36, 1, 40, false, false, true);
    check_attention<T>(2, 36, 36, 1, 16, true, true, true);
    check_attention<T>(1, 5, 18, 1, 300, false);  // more than bfloat16's own kernels hold
    if (!on_cpu) return;
    check_attention<T>(1, 130, 45, 2, 8, false);  // several blocks of queries
    check_attention<T>(2, 70, 70, 1, 100, true);
    check_attention<T>(2, 130, 130, 1, 40, false, true, true);
}

const Op attention_op("attention", {check_attention<float>, check_attention<bfloat16>});

}  // namespace
}  // namespace pydiff::check
