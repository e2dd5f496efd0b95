// csrc/cuda/noise.cu and csrc/cpu/noise.cpp against their equations.
#include "key.h"

namespace pydiff::check {
namespace {

// offset: elements from an aligned address to the arrays' start.
template <class T>
void check_noise(int64_t n, int64_t size, size_t offset) {
    const Noise noise(n, size);
    Numbers x0 = random_numbers(n * size, 1), f = random_numbers(n * size, 2), alpha = random_numbers(n, 3);
    Numbers sigma = random_numbers(n, 4), weight = random_numbers(n, 5), dloss = random_numbers(n, 6);
    const Array<T> x0_(x0, offset), f_(f, offset);
    const Array<float> alpha_(alpha), sigma_(sigma), weight_(weight), dloss_(dloss);
    const NoiseKey& key = noise.key;

    Numbers x_t, dx0, loss(n), df;
    for (int64_t e = 0; e < n * size; ++e) {
        const int64_t i = e / size;
        x_t.push_back(alpha[i] * x0[e] + sigma[i] * noise.eps[e]);
        dx0.push_back(alpha[i] * f[e]);
        const double error = f[e] - x_t[e];
        loss[i] += weight[i] / double(size) * error * error;
        df.push_back(dloss[i] * weight[i] * 2.0 / double(size) * error);
    }

    const auto label = [&](const char* op) { return name(op, sizeof(T), {n, size, int64_t(offset)}); };
    judge(label("normal"), {noise.eps}, tolerance<T>, [&] {
        const Array<T> eps_(n * size, offset);
        launch(normal<T>, n, size, key, eps_);
        return std::vector<Numbers>{eps_.read()};
    });
    for (const bool kept : {false, true})
        judge(label("noise_forward"), {x_t, kept ? noise.eps : Numbers{}}, tolerance<T>, [&] {
            const Array<T> x_t_(n * size, offset), eps_(kept ? n * size : 0);
            launch(noise_forward<T>, n, size, x0_, alpha_, sigma_, key, x_t_, kept ? static_cast<T*>(eps_) : nullptr);
            return std::vector<Numbers>{x_t_.read(), eps_.read()};
        });
    judge(label("noise_backward"), {dx0}, tolerance<T>, [&] {
        const Array<T> dx0_(n * size, offset);
        launch(noise_backward<T>, n, size, f_, alpha_, dx0_);
        return std::vector<Numbers>{dx0_.read()};
    });
    judge(label("noise_loss_forward"), {loss}, tolerance<T>, [&] {
        const Array<float> loss_(n);
        launch_in(noise_loss_workspace(n, size), noise_loss_forward<T>, n, size, f_, x0_, alpha_, sigma_, weight_,
                  key, loss_);
        return std::vector<Numbers>{loss_.read()};
    });
    judge(label("noise_loss_backward"), {df}, tolerance<T>, [&] {
        const Array<T> df_(n * size, offset);
        launch(noise_loss_backward<T>, n, size, dloss_, f_, x0_, alpha_, sigma_, weight_, key, df_);
        return std::vector<Numbers>{df_.read()};
    });
}

template <class T>
void check_noise() {
    check_noise<T>(0, 8, 0);
    check_noise<T>(1, 1, 0);
    check_noise<T>(3, 7, 0);
    check_noise<T>(2, 64, 0);
    check_noise<T>(2, 64, 1);
    check_noise<T>(1, 4101, 0);  // several blocks
}

const Op noise_op("noise", {check_noise<float>, check_noise<bfloat16>});

}  // namespace
}  // namespace pydiff::check
