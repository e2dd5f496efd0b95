// csrc/cuda/group_norm.cu and csrc/cpu/group_norm.cpp against their equations.
#include "check.h"

namespace pydiff::check {
namespace {

template <class T>
void check_group_norm(int64_t n, int64_t pixels, int64_t c, int64_t groups, bool silu) {
    const GroupNormShape s{n, pixels, c, groups, silu};
    const int64_t width = c / groups, size = n * pixels * c;
    constexpr float eps = 1e-5f;
    Numbers x = random_numbers(size, 1), gamma = random_numbers(c, 2), beta = random_numbers(c, 3);
    Numbers dy = random_numbers(size, 4);
    const Array<T> x_(x), dy_(dy);
    const Array<float> gamma_(gamma), beta_(beta);
    const auto group_of = [&](int64_t i) { return i / (pixels * c) * groups + i % c / width; };

    const double members = double(pixels * width);
    Numbers mean(n * groups), rstd(n * groups), y(size);
    for (int64_t i = 0; i < size; ++i) mean[group_of(i)] += x[i] / members;
    for (int64_t i = 0; i < size; ++i) rstd[group_of(i)] += std::pow(x[i] - mean[group_of(i)], 2) / members;
    for (double& r : rstd) r = 1.0 / std::sqrt(r + eps);
    const Array<float> mean_(mean), rstd_(rstd);

    Numbers z(size), dz(size), dx(size), dgamma(c), dbeta(c), dx_sum(c), sum(n * groups), sum_z(n * groups);
    for (int64_t i = 0; i < size; ++i) {
        const int64_t g = group_of(i);
        z[i] = (x[i] - mean[g]) * rstd[g];
        const double a = gamma[i % c] * z[i] + beta[i % c], sigmoid = 1.0 / (1.0 + std::exp(-a));
        y[i] = silu ? a * sigmoid : a;
        const double da = dy[i] * (silu ? sigmoid * (1.0 + a * (1.0 - sigmoid)) : 1.0);
        dgamma[i % c] += da * z[i];
        dbeta[i % c] += da;
        dz[i] = da * gamma[i % c];
        sum[g] += dz[i];
        sum_z[g] += dz[i] * z[i];
    }
    for (int64_t i = 0; i < size; ++i) {
        const int64_t g = group_of(i);
        dx[i] = rstd[g] * (dz[i] - sum[g] / members - z[i] * sum_z[g] / members);
        dx_sum[i % c] += dx[i];
    }

    const auto label = [&](const char* op) { return name(op, sizeof(T), {n, pixels, c, groups, silu}); };
    judge(label("group_norm_forward"), {y, mean, rstd}, tolerance<T>, [&] {
        const Array<T> y_(size);
        const Array<float> mean_(n * groups), rstd_(n * groups);
        launch_in(group_norm_workspace(s), group_norm_forward<T>, s, eps, x_, gamma_, beta_, y_, mean_, rstd_);
        return std::vector<Numbers>{y_.read(), mean_.read(), rstd_.read()};
    });
    judge(label("group_norm_backward"), {dx, dgamma, dbeta, silu ? dx_sum : Numbers{}}, tolerance<T>, [&] {
        const Array<T> dx_(size);
        const Array<float> dgamma_(c), dbeta_(c), dx_sum_(silu ? c : 0);
        launch_in(group_norm_workspace(s), group_norm_backward<T>, s, dy_, x_, gamma_, beta_, mean_, rstd_, dx_,
                  dgamma_, dbeta_, silu ? static_cast<float*>(dx_sum_) : nullptr);
        return std::vector<Numbers>{dx_.read(), dgamma_.read(), dbeta_.read(), dx_sum_.read()};
    });
}

template <class T>
void check_group_norm() {
    check_group_norm<T>(0, 4, 8, 2, true);
    check_group_norm<T>(1, 3, 6, 3, true);
    check_group_norm<T>(2, 5, 8, 2, false);
    check_group_norm<T>(1, 67, 64, 32, true);
    check_group_norm<T>(2, 17, 40, 4, true);
    if (!on_cpu) return;
    check_group_norm<T>(1, 1100, 48, 4, true);  // several parts of a sample
    check_group_norm<T>(3, 300, 20, 5, false);
}

const Op group_norm_op("group_norm", {check_group_norm<float>, check_group_norm<bfloat16>});

}  // namespace
}  // namespace pydiff::check
