// csrc/cuda/gelu.cu and csrc/cpu/gelu.cpp against their equations.
#include "check.h"

namespace pydiff::check {
namespace {

double cumulative(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double slope(double x) { return cumulative(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)); }

template <class T>
void check_gelu(int64_t size, size_t offset) {
    Numbers x = random_numbers(size, 1), dy = random_numbers(size, 2), y(size), dx(size);
    for (double& v : x) v *= 4;
    const Array<T> x_(x, offset), dy_(dy, offset);
    for (int64_t e = 0; e < size; ++e) y[e] = x[e] * cumulative(x[e]), dx[e] = dy[e] * slope(x[e]);
    judge(name("gelu_forward", sizeof(T), {size, int64_t(offset)}), {y}, tolerance<T>, [&] {
        const Array<T> y_(size, offset);
        launch(gelu_forward<T>, size, x_, y_);
        return std::vector<Numbers>{y_.read()};
    });
    judge(name("gelu_backward", sizeof(T), {size, int64_t(offset)}), {dx}, tolerance<T>, [&] {
        const Array<T> dx_(size, offset);
        launch(gelu_backward<T>, size, dy_, x_, dx_);
        return std::vector<Numbers>{dx_.read()};
    });
}

template <class T>
void check_geglu(int64_t rows, int64_t c, size_t offset) {
    Numbers x = random_numbers(2 * rows * c, 1), dy = random_numbers(rows * c, 2), y(rows * c), dx(2 * rows * c);
    for (double& v : x) v *= 4;
    const Array<T> x_(x, offset), dy_(dy, offset);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t e = 0; e < c; ++e) {
            const double a = x[2 * i * c + e], b = x[(2 * i + 1) * c + e], g = dy[i * c + e];
            y[i * c + e] = a * b * cumulative(b);
            dx[2 * i * c + e] = g * b * cumulative(b);
            dx[(2 * i + 1) * c + e] = g * a * slope(b);
        }
    judge(name("geglu_forward", sizeof(T), {rows, c, int64_t(offset)}), {y}, tolerance<T>, [&] {
        const Array<T> y_(rows * c, offset);
        launch(geglu_forward<T>, rows, c, x_, y_);
        return std::vector<Numbers>{y_.read()};
    });
    judge(name("geglu_backward", sizeof(T), {rows, c, int64_t(offset)}), {dx}, tolerance<T>, [&] {
        const Array<T> dx_(2 * rows * c, offset);
        launch(geglu_backward<T>, rows, c, dy_, x_, dx_);
        return std::vector<Numbers>{dx_.read()};
    });
}

template <class T>
void check_gelu() {
    check_gelu<T>(0, 0);
    check_gelu<T>(1, 0);
    check_gelu<T>(67, 1);
    check_gelu<T>(2048, 0);
    check_geglu<T>(0, 8, 0);
    check_geglu<T>(3, 0, 0);
    check_geglu<T>(1, 1, 0);
    check_geglu<T>(5, 7, 0);
    check_geglu<T>(3, 40, 0);
    check_geglu<T>(2, 24, 1);
    if (!on_cpu) return;
    check_gelu<T>(20000, 0);  // several tiles
    check_geglu<T>(3, 9000, 0);
}

const Op gelu_op("gelu", {check_gelu<float>, check_gelu<bfloat16>});

}  // namespace
}  // namespace pydiff::check
