// csrc/cuda/denoise.cu and csrc/cpu/denoise.cpp against their equations.
#include "key.h"

namespace pydiff::check {
namespace {

template <class T>
void check_denoise(int64_t n, int64_t size, int64_t k, bool guided, bool noisy, size_t offset) {
    const Noise noise(n, size);
    Numbers x = random_numbers(n * size, 1), f = random_numbers(n * size, 2), uncond = random_numbers(n * size, 3);
    Numbers dx_next = random_numbers(n * size, 4), dx0_hat = random_numbers(n * size, 5);
    Numbers table = random_numbers(3 * (9 + k), 6), row = {1};
    table[9 + k + 2] = -0.3, table[9 + k + 3] = 0.4;  // low and high of row 1
    const Array<float> x_(x, offset), dx_next_(dx_next, offset), dx0_hat_(dx0_hat, offset), table_(table);
    const Array<T> f_(f, offset), uncond_(uncond, offset);
    const Array<int32_t> row_(row);
    const T* const given = guided ? static_cast<T*>(uncond_) : nullptr;
    DenoiseTable step{table_, row_, 3, {}, k};
    std::vector<Numbers> history;
    std::vector<std::unique_ptr<Array<float>>> history_;
    for (int64_t j = 0; j < k; ++j) {
        history.push_back(random_numbers(n * size, 10 + j));
        history_.push_back(std::make_unique<Array<float>>(history[j], offset));
        step.history[j] = *history_[j];
    }

    const double* const at = table.data() + 9 + k;
    const double u = at[0], v = at[1], low = at[2], high = at[3], a = at[4], b = at[5], d = at[6], s = at[7], g = at[8];
    Numbers x_next, x0_hat, dx, df;
    for (int64_t e = 0; e < n * size; ++e) {
        const double mixed = guided ? uncond[e] + g * (f[e] - uncond[e]) : f[e], free = u * x[e] + v * mixed;
        x0_hat.push_back(std::fmin(std::fmax(free, low), high));
        x_next.push_back(a * x[e] + b * x0_hat[e] + d * mixed + (noisy ? s * noise.eps[e] : 0.0));
        for (int64_t j = 0; j < k; ++j) x_next[e] += at[9 + j] * history[j][e];
        const double dfree = low <= free && free <= high ? dx0_hat[e] + b * dx_next[e] : 0.0;
        dx.push_back(a * dx_next[e] + u * dfree);
        df.push_back((guided ? g : 1.0) * (d * dx_next[e] + v * dfree));
    }

    const auto label = [&](const char* op) {
        return name(op, sizeof(T), {n, size, k, guided, noisy, int64_t(offset)});
    };
    judge(label("denoise_forward"), {x_next, x0_hat}, tolerance<float>, [&] {
        const Array<float> x_next_(n * size, offset), x0_hat_(n * size, offset);
        launch(denoise_forward<T>, n, size, step, x_, f_, given, noisy ? &noise.key : nullptr, x_next_, x0_hat_);
        return std::vector<Numbers>{x_next_.read(), x0_hat_.read()};
    });
    judge(label("denoise_backward"), {dx, df}, tolerance<T>, [&] {
        const Array<float> dx_(n * size, offset);
        const Array<T> df_(n * size, offset);
        launch(denoise_backward<T>, n, size, step, dx_next_, dx0_hat_, x_, f_, given, dx_, df_);
        return std::vector<Numbers>{dx_.read(), df_.read()};
    });
}

template <class T>
void check_denoise() {
    check_denoise<T>(0, 8, 0, false, false, 0);
    check_denoise<T>(1, 1, 0, false, true, 0);
    check_denoise<T>(3, 7, 1, true, false, 0);
    check_denoise<T>(2, 64, 2, true, true, 0);
    check_denoise<T>(2, 64, 0, false, true, 1);
    check_denoise<T>(1, 4101, 3, true, true, 0);
}

const Op denoise_op("denoise", {check_denoise<float>, check_denoise<bfloat16>});

}  // namespace
}  // namespace pydiff::check
