// csrc/cpu/simd_math.h and the bounds of simd.h, for floats of every size and sign, infinities and NaN included; and the
// fused multiply-add of gemm.h.
#include "../simd_math.h"

#include <cfloat>

#include "../../cuda/check/check.h"
#include "../gemm.h"

namespace pydiff::check {
namespace {

constexpr double units = 2.5;  // in the last place: the promise of simd_math.h

// What the error is counted in: the distance of two floats there, as far as floats of that size are kept exact.
double unit_in_the_last_place(double x) {
    return std::ldexp(1.0, std::max(std::ilogb(std::max(std::fabs(x), 2e-36)), -126) - 23);
}

void check_float(const std::string& name, float x, float got, double exact, double most_units) {
    if (std::isnan(exact) || (std::isinf(exact) && got == float(exact))) {
        if (!std::isnan(exact) || std::isnan(got)) return;
    } else if (std::fabs(exact) <= FLT_MAX) {
        const double off = std::fabs(got - exact) / unit_in_the_last_place(exact);
        double& largest = errors[name + " (units in the last place)"];
        if (std::fabs(exact) > 2e-36) largest = std::max(largest, off);
        if (off <= most_units || (std::fabs(exact) <= 2.01e-36 && std::fabs(got) <= 2.01e-36f)) return;
    } else if (got == std::copysign(INFINITY, exact) || std::fabs(got) > 0.999999f * FLT_MAX) {
        return;  // beyond the largest float, or almost
    }
    char text[160];
    std::snprintf(text, sizeof text, "%s(%a) is %a, expected %a", name.c_str(), double(x), double(got), exact);
    fail(text);
}

// Every 9973rd float, in vectors: 430,645 of them, which meet every exponent and both signs.
template <class Visit>
void for_all_floats(Visit visit) {
    float x[simd_width];
    int filled = 0;
    for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 9973) {
        const uint32_t low = static_cast<uint32_t>(bits);
        std::memcpy(&x[filled], &low, sizeof low);
        if (++filled == simd_width) visit(x), filled = 0;
    }
    for (const float special : {0.0f, -0.0f, INFINITY, -INFINITY, NAN}) {
        std::fill(x, x + simd_width, special);
        visit(x);
    }
}

void check_function(const char* name, vfloat (*ours)(vfloat), double (*exact)(double), double most_units) {
    for_all_floats([&](const float* x) {
        const vfloat y = ours(load(x));
        for (int i = 0; i < simd_width; ++i) check_float(name, x[i], y[i], exact(double(x[i])), most_units);
    });
}

// Near its zero, where sigma(x) and x sigma'(x) cancel, the derivative of SiLU has only its absolute error.
void check_silu_derivative() {
    for_all_floats([](const float* x) {
        const vfloat y = silu_derivative(load(x));
        for (int i = 0; i < simd_width; ++i) {
            const double z = x[i], s = 1.0 / (1.0 + std::exp(-z)), c = 1.0 / (1.0 + std::exp(z));
            const double exact = std::isinf(z) ? z > 0 : s * (1.0 + z * c);
            if (!(std::fabs(z + 1.28) <= 1))
                check_float("derivative of silu", x[i], y[i], exact, 4);
            else if (!(std::fabs(y[i] - exact) <= 6e-8))
                fail("the derivative of silu at " + std::to_string(z) + " is off by " + std::to_string(y[i] - exact));
        }
    });
}

void check_functions() {
    check_function("exp2", [](vfloat x) { return Exp2()(at_most(x, 126.5f)); },
                   [](double x) { return std::isnan(x) ? x : std::exp2(std::min(x, 126.5)); }, units);
    check_function("log", log, [](double x) { return std::log(x); }, units);
    check_function("sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0.5);
    check_function("silu", silu, [](double x) { return x == -INFINITY ? -0.0 : x / (1.0 + std::exp(-x)); }, units);
    check_silu_derivative();
}

// u - round(u) is exact, so the angle is right to a few units of double's last place; where sine or cosine is zero, it is
// not zero enough.
void check_sincos() {
    for_all_floats([&](const float* u) {
        vfloat sine, cosine;
        sincos_turns(load(u), sine, cosine);
        for (int i = 0; i < simd_width; ++i) {
            const double turn = double(u[i]) - std::nearbyint(double(u[i])), angle = turn * 6.283185307179586477;
            check_float("sine", u[i], sine[i], std::fabs(turn) == 0.5 ? 0.0 : std::sin(angle), units);
            check_float("cosine", u[i], cosine[i], std::fabs(turn) == 0.25 ? 0.0 : std::cos(angle), units);
        }
    });
}

void check_bounds() {
    for_all_floats([&](const float* x) {
        const vfloat low = at_least(load(x), -0.75f), high = at_most(load(x), 0.75f);
        for (int i = 0; i < simd_width; ++i) {
            check_float("at_least", x[i], low[i], std::isnan(x[i]) ? x[i] : std::max(x[i], -0.75f), 0.0);
            check_float("at_most", x[i], high[i], std::isnan(x[i]) ? x[i] : std::min(x[i], 0.75f), 0.0);
        }
    });
}

// The first `count` floats of a row and nothing behind them, which an address sanitizer would see.
void check_tails() {
    for (int count = 0; count <= simd_width; ++count) {
        Numbers numbers = random_numbers(count, 1), expected = numbers;
        const Array<float> x(numbers), y(count);
        expected = x.read();
        const vfloat v = load_upto(x, count);
        store_upto(y, v, count);
        compare("load_upto and store_upto", y.read(), expected, 0.0);
        for (int i = count; i < simd_width; ++i)
            if (v[i] != 0.0f) fail("load_upto: what lies behind the row is not zero");
    }
}

// Where the processor has the instruction, a product and a sum are rounded once: (1 + e)^2 - (1 + 2 e) is e^2, of which
// two roundings leave nothing.
void check_multiply_add() {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    volatile float e = 0x1p-12f;  // not known to the compiler
    const vfloat square = multiply_add(broadcast(1.0f + e), broadcast(1.0f + e), broadcast(-1.0f - 2.0f * e));
    for (int i = 0; i < simd_width; ++i)
        if (square[i] != e * e) fail("multiply_add: two roundings");
#endif
}

const Op simd_math_op("simd_math", {check_functions, check_sincos, check_bounds, check_tails, check_multiply_add});

}  // namespace
}  // namespace pydiff::check
