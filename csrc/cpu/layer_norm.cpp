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
// Layout: a few rows at a time are read from memory once; they stay in a first-level cache for the second pass over them,
// and share what is loaded of gamma, beta and their gradients. Rows come in blocks of a size that depends on c only. A
// block is one item of work and adds up its own dgamma and dbeta; blocks are then added in double, in order.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace pydiff {
namespace {

// About what an element takes. A block has 16384 elements, but never less than a row.
constexpr double nanoseconds = 0.2, backward_nanoseconds = 0.4;
int64_t rows_of_block(int64_t c) { return std::max<int64_t>(1, 16384 / c); }

// rows(first, R), for all rows from begin to end: R = 4 at a time where that many fit a first-level cache, else 1.
template <class Rows>
void by_rows(int64_t begin, int64_t end, int64_t c, Rows rows) {
    if (c <= 2048)
        for (; begin + 4 <= end; begin += 4) rows(begin, std::integral_constant<int, 4>());
    for (; begin < end; ++begin) rows(begin, std::integral_constant<int, 1>());
}

// visit(e, n) for every vector of a row: its first element, and how many of its lanes lie in the row.
template <class Visit>
void by_vectors(int64_t c, Visit visit) {
    int64_t e = 0;
    for (; e + simd_width <= c; e += simd_width) visit(e, std::integral_constant<int64_t, simd_width>());
    if (e < c) visit(e, c - e);
}

// The sum of all lanes, by halves.
double sum_of(vfloat v) {
    constexpr int half = simd_width / 2;
    double lanes[half];
    for (int j = 0; j < half; ++j) lanes[j] = static_cast<double>(v[j]) + static_cast<double>(v[j + half]);
    for (int width = half / 2; width > 0; width /= 2)
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    return lanes[0];
}

struct Sums {
    double first, second;
};

// Two sums over a row at once: add(e, n, first, second) adds what belongs to the vector at e, of which n lanes lie in the
// row. Additions wait for each other, so four sums run in parallel; a sum in float covers 256 vectors, then continues in
// double.
template <class Add>
Sums row_sums(int64_t c, Add add) {
    constexpr int64_t long_enough = 4 * 64 * simd_width;
    Sums total{0, 0};
    for (int64_t begin = 0; begin < c; begin += long_enough) {
        const int64_t end = std::min(c, begin + long_enough);
        vfloat first[4] = {}, second[4] = {};
        int64_t e = begin;
        for (; e + 4 * simd_width <= end; e += 4 * simd_width)
            for (int u = 0; u < 4; ++u) add(e + u * simd_width, int64_t{simd_width}, first[u], second[u]);
        for (int u = 0; e < end; e += simd_width, ++u)
            add(e, std::min<int64_t>(simd_width, end - e), first[u], second[u]);
        total.first += sum_of((first[0] + first[1]) + (first[2] + first[3]));
        total.second += sum_of((second[0] + second[1]) + (second[2] + second[3]));
    }
    return total;
}

// The first values of a row tell about where it is.
float first_guess(int64_t c, const float* x) {
    return c < 4 ? x[0] : static_cast<float>(0.25 * ((0.0 + x[0] + x[1]) + (0.0 + x[2] + x[3])));
}

// Of x - centre and of its square, over the row x.
Sums deviations(float centre, int64_t c, const float* x) {
    return row_sums(c, [&](int64_t e, int64_t n, vfloat& first, vfloat& second) {
        vfloat d = load_upto(x + e, n) - centre;
        for (int64_t j = n; j < simd_width; ++j) d[j] = 0.0f;  // behind the row
        first += d;
        second += d * d;
    });
}

// mean and rstd of R rows. The mean square less the square of the mean would lose every digit of values far from zero, so
// deviations are taken from a centre near the mean. A centre off by delta costs digits in proportion to delta^2 over the
// variance: that is too much only where the first values are unlike all others, and then the mean is known by now.
template <int R>
void statistics(int64_t c, float eps, const float* x, float* mean, float* rstd) {
    const double share = 1.0 / static_cast<double>(c);
    double centre[R], first[R], second[R];
    bool far[R];
    const auto measure = [&](int k, float about) {
        const Sums sums = deviations(about, c, x + k * c);
        centre[k] = static_cast<double>(about), first[k] = sums.first, second[k] = sums.second;
    };
    const auto finish = [&](int k) {
        const double off = first[k] * share, rest = second[k] * share - off * off;
        const double variance = rest < 0 ? 0.0 : rest;  // by rounding; NaN stays NaN
        mean[k] = static_cast<float>(centre[k] + off);
        rstd[k] = static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps)));
        far[k] = off * off > 16 * variance;
    };
    for (int k = 0; k < R; ++k) measure(k, first_guess(c, x + k * c));
    for (int k = 0; k < R; ++k) finish(k);
    for (int k = 0; k < R; ++k) {
        if (!far[k]) continue;
        measure(k, mean[k]);
        finish(k);
    }
}

}  // namespace

template <>
void layer_norm_forward(int64_t rows, int64_t c, float eps, const float* x, const float* gamma, const float* beta,
                        float* y, float* mean, float* rstd) {
    const auto normalise = [&](int64_t i, auto count) {
        constexpr int R = count.value;
        vfloat m[R], r[R];
        statistics<R>(c, eps, x + i * c, mean + i, rstd + i);
        for (int k = 0; k < R; ++k) {
            m[k] = broadcast(mean[i + k]);
            r[k] = broadcast(rstd[i + k]);
        }
        by_vectors(c, [&](int64_t e, auto n) {
            vfloat v[R];
            for (int k = 0; k < R; ++k) v[k] = (load_upto(x + (i + k) * c + e, n) - m[k]) * r[k];
            if (gamma) {
                const vfloat scale = load_upto(gamma + e, n);
                for (int k = 0; k < R; ++k) v[k] *= scale;
            }
            if (beta) {
                const vfloat shift = load_upto(beta + e, n);
                for (int k = 0; k < R; ++k) v[k] += shift;
            }
            for (int k = 0; k < R; ++k) store_upto(y + (i + k) * c + e, v[k], n);
        });
    };
    if (c == 0) return;
    auto block = [&](int64_t begin, int64_t end) { by_rows(begin, end, c, normalise); };
    parallel_chunks(rows, rows_of_block(c), RangeBody(block), nanoseconds * static_cast<double>(rows * c));
}

template <>
void layer_norm_backward(int64_t rows, int64_t c, const float* dy, const float* x, const float* gamma, const float* mean,
                         const float* rstd, float* dx, float* dgamma, float* dbeta) {
    if (c == 0) return;
    const int64_t grain = rows_of_block(c), blocks = (rows + grain - 1) / grain;
    const bool sums_wanted = dgamma || dbeta;
    const double share = 1.0 / static_cast<double>(c);
    float* const sums = sums_wanted ? scratch(0, static_cast<size_t>(2 * blocks * c)) : nullptr;
    const auto rows_from = [&](int64_t i, auto count, float* block) {  // block: dbeta and dgamma of its rows
        constexpr int R = count.value;
        vfloat m[R], r[R], mean1[R], mean2[R];
        Sums sums_of_row[R];
        for (int k = 0; k < R; ++k) {
            const float *const xk = x + (i + k) * c, *const dyk = dy + (i + k) * c;
            m[k] = broadcast(mean[i + k]);
            r[k] = broadcast(rstd[i + k]);
            sums_of_row[k] = row_sums(c, [&](int64_t e, int64_t n, vfloat& first, vfloat& second) {
                const vfloat h = (load_upto(xk + e, n) - m[k]) * r[k];
                const vfloat g = load_upto(dyk + e, n);
                const vfloat dh = gamma ? g * load_upto(gamma + e, n) : g;  // 2; zero behind the row
                first += dh;
                second += dh * h;
            });
        }
        for (int k = 0; k < R; ++k) {
            mean1[k] = broadcast(static_cast<float>(sums_of_row[k].first * share));
            mean2[k] = broadcast(static_cast<float>(sums_of_row[k].second * share));
        }
        by_vectors(c, [&](int64_t e, auto n) {
            const vfloat scale = gamma ? load_upto(gamma + e, n) : broadcast(1.0f);
            vfloat sum1{}, sum2{};
            for (int k = 0; k < R; ++k) {
                const vfloat h = (load_upto(x + (i + k) * c + e, n) - m[k]) * r[k];
                const vfloat g = load_upto(dy + (i + k) * c + e, n);
                store_upto(dx + (i + k) * c + e, r[k] * (g * scale - mean1[k] - h * mean2[k]), n);  // 3
                sum1 += g;  // 1
                sum2 += g * h;
            }
            if (!block) return;
            store_upto(block + e, load_upto(block + e, n) + sum1, n);
            store_upto(block + c + e, load_upto(block + c + e, n) + sum2, n);
        });
    };
    parallel_for(blocks, 1, [&](int64_t k) {
        float* const block = sums_wanted ? sums + 2 * k * c : nullptr;
        if (block) std::fill_n(block, 2 * c, 0.0f);
        by_rows(k * grain, std::min(rows, (k + 1) * grain), c, [&](int64_t i, auto count) { rows_from(i, count, block); });
    }, backward_nanoseconds * static_cast<double>(rows * c));
    if (!sums_wanted) return;
    constexpr int64_t columns = 64;
    parallel_for((2 * c + columns - 1) / columns, 1, [&](int64_t item) {
        const int64_t first = item * columns, count = std::min(columns, 2 * c - first);
        double total[columns] = {};
        for (int64_t k = 0; k < blocks; ++k)
            for (int64_t e = 0; e < count; ++e) total[e] += static_cast<double>(sums[2 * k * c + first + e]);
        for (int64_t e = first; e < first + count; ++e) {
            float* const d = e < c ? dbeta : dgamma;
            if (d) d[e < c ? e : e - c] = static_cast<float>(total[e - first]);
        }
    }, 0.3 * static_cast<double>(2 * blocks * c));
}

}  // namespace pydiff
