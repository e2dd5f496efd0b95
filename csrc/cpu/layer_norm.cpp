// Layer normalisation (Ba, Kiros and Hinton 2016, eq. 4): each row of c channels separately.
//
//     xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)   mean, var over the c channels of a row
//     y    = gamma xhat + beta
//
// Backward, for a gradient dy of the loss:
//     1. dbeta = sum_rows dy,   dgamma = sum_rows dy xhat
//     2. dxhat = gamma dy
//     3. dx    = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat))
//
// Array path: pydiff/ops/layer_norm.py. Reference: pydiff/reference/layer_norm.py.
//
// Layout: a row is read from memory once; it stays in a first-level cache for the passes over it. Rows come in blocks of
// a size that depends on c only. A block is one item of work and adds up its own dgamma and dbeta; blocks are then added
// in double, in order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace pydiff {
namespace {

// About what an element takes. A block has 16384 elements, but never less than a row.
constexpr double nanoseconds = 0.6, backward_nanoseconds = 1.2;
int64_t rows_of_block(int64_t c) { return std::max<int64_t>(1, 16384 / c); }

double sum_of(vfloat v) {
    double sum = 0;
    for (int j = 0; j < simd_width; ++j) sum += static_cast<double>(v[j]);
    return sum;
}

// sum over the row of term(e, count), which makes a vector of `count` elements from element e on, zeros behind them.
// Additions wait for each other, so four sums run in parallel; a sum in float covers 256 vectors, then continues in
// double.
template <class Term>
double row_sum(int64_t c, Term term) {
    constexpr int64_t long_enough = 4 * 64 * simd_width;
    double total = 0;
    for (int64_t begin = 0; begin < c; begin += long_enough) {
        const int64_t end = std::min(c, begin + long_enough);
        vfloat sum[4] = {};
        int64_t e = begin;
        for (; e + 4 * simd_width <= end; e += 4 * simd_width)
            for (int u = 0; u < 4; ++u) sum[u] += term(e + u * simd_width, static_cast<int64_t>(simd_width));
        for (int u = 0; e < end; e += simd_width, ++u) sum[u] += term(e, std::min<int64_t>(simd_width, end - e));
        total += sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    return total;
}

}  // namespace

template <>
void layer_norm_forward(int64_t rows, int64_t c, float eps, const float* x, const float* gamma, const float* beta,
                        float* y, float* mean, float* rstd) {
    if (c == 0) return;
    const double size = static_cast<double>(c);
    const int64_t grain = rows_of_block(c);
    const auto row = [&](int64_t i) {
        const float* const xi = x + i * c;
        float* const yi = y + i * c;
        // The mean of values far from zero is a rounded sum; the mean of what is left when it is taken off corrects it.
        const auto given = [&](int64_t e, int64_t n) { return load_upto(xi + e, n); };
        const float rough = static_cast<float>(row_sum(c, given) / size);
        const auto off = [&](int64_t e, int64_t n) {
            vfloat d = load_upto(xi + e, n) - rough;
            for (int64_t j = n; j < simd_width; ++j) d[j] = 0.0f;  // behind the row
            return d;
        };
        const double rest = row_sum(c, off) / size;
        const double squares = row_sum(c, [&](int64_t e, int64_t n) {
            const vfloat d = off(e, n);
            return d * d;
        }) / size;
        const float m = static_cast<float>(rough + rest);
        const float r = static_cast<float>(1.0 / std::sqrt(std::max(squares - rest * rest, 0.0) + eps));
        for (int64_t e = 0; e < c; e += simd_width) {
            vfloat v = (load_upto(xi + e, c - e) - m) * r;
            if (gamma) v *= load_upto(gamma + e, c - e);
            if (beta) v += load_upto(beta + e, c - e);
            store_upto(yi + e, v, c - e);
        }
        mean[i] = m;
        rstd[i] = r;
    };
    parallel_for(rows, grain, row, nanoseconds * size * static_cast<double>(rows));
}

template <>
void layer_norm_backward(int64_t rows, int64_t c, const float* dy, const float* x, const float* gamma, const float* mean,
                         const float* rstd, float* dx, float* dgamma, float* dbeta) {
    if (c == 0) return;
    const double size = static_cast<double>(c);
    const int64_t grain = rows_of_block(c), blocks = (rows + grain - 1) / grain;
    const bool sums_wanted = dgamma || dbeta;
    std::vector<float> sums(sums_wanted ? static_cast<size_t>(2 * blocks * c) : 0);  // dbeta and dgamma of every block
    const auto row = [&](int64_t i, float* block) {
        const float *const xi = x + i * c, *const dyi = dy + i * c;
        const float m = mean[i], r = rstd[i];
        const auto xhat = [&](int64_t e, int64_t n) { return (load_upto(xi + e, n) - m) * r; };
        const auto dxhat = [&](int64_t e, int64_t n) {  // 2; zero behind the row
            const vfloat g = load_upto(dyi + e, n);
            return gamma ? g * load_upto(gamma + e, n) : g;
        };
        const float mean1 = static_cast<float>(row_sum(c, dxhat) / size);
        const float mean2 = static_cast<float>(
            row_sum(c, [&](int64_t e, int64_t n) { return dxhat(e, n) * xhat(e, n); }) / size);
        for (int64_t e = 0; e < c; e += simd_width) {
            const int64_t n = c - e;
            const vfloat h = xhat(e, n);
            store_upto(dx + i * c + e, r * (dxhat(e, n) - mean1 - h * mean2), n);  // 3
            if (!block) continue;
            const vfloat g = load_upto(dyi + e, n);  // 1
            store_upto(block + e, load_upto(block + e, n) + g, n);
            store_upto(block + c + e, load_upto(block + c + e, n) + g * h, n);
        }
    };
    parallel_for(blocks, 1, [&](int64_t k) {
        float* const block = sums_wanted ? sums.data() + 2 * k * c : nullptr;
        for (int64_t i = k * grain; i < std::min(rows, (k + 1) * grain); ++i) row(i, block);
    }, backward_nanoseconds * size * static_cast<double>(rows));
    for (int64_t e = 0; sums_wanted && e < c; ++e) {
        double beta_sum = 0, gamma_sum = 0;
        for (int64_t k = 0; k < blocks; ++k) {
            beta_sum += static_cast<double>(sums[static_cast<size_t>(2 * k * c + e)]);
            gamma_sum += static_cast<double>(sums[static_cast<size_t>((2 * k + 1) * c + e)]);
        }
        if (dbeta) dbeta[e] = static_cast<float>(beta_sum);
        if (dgamma) dgamma[e] = static_cast<float>(gamma_sum);
    }
}

}  // namespace pydiff
