// csrc/cuda/adamw.cu and csrc/cpu/adamw.cpp against their equations.
#include "check.h"

namespace pydiff::check {
namespace {

// norm: the gradient's, which the step clips to 0.5; not finite: nothing may change; negative: not given.
void check_adamw(int64_t size, double norm, bool averaged, size_t offset) {
    Numbers p = random_numbers(size, 1), g = random_numbers(size, 2), m = random_numbers(size, 3);
    Numbers v = random_numbers(size, 4), ema = random_numbers(size, 5), low(size, 0.25);
    for (double& x : v) x *= x;
    Numbers schedule = {0.01, 3.0, 0.9, 0.5}, norm2 = {norm * norm};
    const Array<float> g_(g, offset);
    const Array<double> schedule_(schedule), norm2_(norm2);
    const AdamWStep step{0.9, 0.999, 1e-8, 0.1, schedule_, norm < 0 ? nullptr : static_cast<double*>(norm2_)};

    const bool copied = averaged && !on_cpu;  // to low
    std::vector<Numbers> before = {p, m, v, averaged ? ema : Numbers{}, copied ? low : Numbers{}};
    for (int i = 0; i < 4; ++i)
        for (double& x : before[i]) x = float(x);
    std::vector<Numbers> after = before;
    const double scale = norm > 0.5 ? 0.5 / (norm + 1e-6) : 1.0;
    for (int64_t i = 0; i < size && (norm < 0 || std::isfinite(norm)); ++i) {
        after[1][i] = 0.9 * before[1][i] + 0.1 * scale * g[i];
        after[2][i] = 0.999 * before[2][i] + 0.001 * scale * g[i] * scale * g[i];
        const double m_hat = after[1][i] / (1 - std::pow(0.9, 3)), v_hat = after[2][i] / (1 - std::pow(0.999, 3));
        after[0][i] -= 0.01 * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * before[0][i]);
        if (averaged) after[3][i] = 0.9 * before[3][i] + 0.1 * after[0][i];
        if (copied) after[4][i] = widened(rounded<bfloat16>(after[0][i]));
    }

    judge(name("adamw", 4, {size, int64_t(averaged), int64_t(offset)}) + " norm " + std::to_string(norm), after, 5e-3,
          [&] {
              std::vector<Numbers> start = before;
              const Array<float> p_(start[0], offset), m_(start[1], offset), v_(start[2], offset);
              const Array<float> ema_(start[3], offset);
              const Array<bfloat16> low_(start[4], offset);
              void* const low = copied ? static_cast<bfloat16*>(low_) : nullptr;
              launch(adamw, size, step, p_, g_, m_, v_, averaged ? static_cast<float*>(ema_) : nullptr,
                     static_cast<pydiff::bfloat16*>(low));
              return std::vector<Numbers>{p_.read(), m_.read(), v_.read(), ema_.read(), low_.read()};
          });
}

void check_squared_norm(int64_t size, size_t offset) {
    Numbers g = random_numbers(size, 1), expected = {0.0};
    const Array<float> g_(g, offset);
    for (double x : g) expected[0] += x * x;
    judge(name("squared_norm", 4, {size, int64_t(offset)}), {expected}, 1e-12, [&] {
        const Array<double> norm2_(1);
        launch_in(squared_norm_workspace(size), squared_norm, size, g_, norm2_);
        return std::vector<Numbers>{norm2_.read()};
    });
}

void check_adamw() {
    check_adamw(0, -1.0, true, 0);
    check_adamw(1, -1.0, false, 0);
    check_adamw(7, 2.0, true, 0);
    check_adamw(64, 0.25, true, 1);
    check_adamw(4101, 2.0, true, 0);
    check_adamw(64, INFINITY, true, 0);
    check_squared_norm(0, 0);
    check_squared_norm(1, 0);
    check_squared_norm(64, 1);
    check_squared_norm(20011, 0);
}

const Op adamw_op("adamw", {check_adamw});

}  // namespace
}  // namespace pydiff::check
