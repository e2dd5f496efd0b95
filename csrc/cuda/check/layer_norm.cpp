// csrc/cuda/layer_norm.cu and csrc/cpu/layer_norm.cpp against their equations.
#include "check.h"

namespace pydiff::check {
namespace {

// parameters: gamma and beta are given, and their gradients wanted.
template <class T>
void check_layer_norm(int64_t rows, int64_t c, bool parameters, size_t offset) {
    constexpr float eps = 1e-5f;
    Numbers x = random_numbers(rows * c, 1), dy = random_numbers(rows * c, 2);
    Numbers gamma = random_numbers(c, 3), beta = random_numbers(c, 4);
    for (double& v : x) v += 3;
    const Array<T> x_(x, offset), dy_(dy, offset);
    const Array<float> gamma_(gamma), beta_(beta);
    const float *const g = parameters ? static_cast<float*>(gamma_) : nullptr;
    const float *const b = parameters ? static_cast<float*>(beta_) : nullptr;

    Numbers y(rows * c), mean(rows), rstd(rows), dx(rows * c), dgamma(parameters ? c : 0), dbeta(parameters ? c : 0);
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t e = 0; e < c; ++e) mean[i] += x[i * c + e] / double(c);
        for (int64_t e = 0; e < c; ++e) rstd[i] += std::pow(x[i * c + e] - mean[i], 2) / double(c);
        rstd[i] = 1.0 / std::sqrt(rstd[i] + eps);
        double mean1 = 0, mean2 = 0;
        const auto xhat = [&](int64_t e) { return (x[i * c + e] - mean[i]) * rstd[i]; };
        const auto dxhat = [&](int64_t e) { return dy[i * c + e] * (parameters ? gamma[e] : 1.0); };
        for (int64_t e = 0; e < c; ++e) {
            y[i * c + e] = parameters ? gamma[e] * xhat(e) + beta[e] : xhat(e);
            mean1 += dxhat(e) / double(c), mean2 += dxhat(e) * xhat(e) / double(c);
            if (parameters) dgamma[e] += dy[i * c + e] * xhat(e), dbeta[e] += dy[i * c + e];
        }
        for (int64_t e = 0; e < c; ++e) dx[i * c + e] = rstd[i] * (dxhat(e) - mean1 - xhat(e) * mean2);
    }
    const Array<float> mean_(mean), rstd_(rstd);

    const auto label = [&](const char* op) { return name(op, sizeof(T), {rows, c, parameters, int64_t(offset)}); };
    judge(label("layer_norm_forward"), {y, mean, rstd}, tolerance<T>, [&] {
        const Array<T> y_(rows * c, offset);
        const Array<float> mean_(rows), rstd_(rows);
        launch(layer_norm_forward<T>, rows, c, eps, x_, g, b, y_, mean_, rstd_);
        return std::vector<Numbers>{y_.read(), mean_.read(), rstd_.read()};
    });
    judge(label("layer_norm_backward"), {dx, dgamma, dbeta}, tolerance<T>, [&] {
        const Array<T> dx_(rows * c, offset);
        const Array<float> dgamma_(dgamma.size()), dbeta_(dbeta.size());
        launch_in(layer_norm_backward_workspace(rows, c), layer_norm_backward<T>, rows, c, dy_, x_, g, mean_, rstd_, dx_,
                  parameters ? static_cast<float*>(dgamma_) : nullptr,
                  parameters ? static_cast<float*>(dbeta_) : nullptr);
        return std::vector<Numbers>{dx_.read(), dgamma_.read(), dbeta_.read()};
    });
}

template <class T>
void check_layer_norm() {
    check_layer_norm<T>(0, 8, true, 0);
    check_layer_norm<T>(1, 2, false, 0);
    check_layer_norm<T>(5, 7, true, 0);
    check_layer_norm<T>(3, 40, true, 0);
    check_layer_norm<T>(2, 320, false, 0);
    check_layer_norm<T>(4, 24, true, 1);
    check_layer_norm<T>(300, 8, true, 0);  // two chunks of the column sums
    if (!on_cpu) return;
    check_layer_norm<T>(500, 70, true, 0);  // several blocks
    check_layer_norm<T>(3, 5000, true, 0);
}

const Op layer_norm_op("layer_norm", {check_layer_norm<float>, check_layer_norm<bfloat16>});

}  // namespace
}  // namespace pydiff::check
