// Elementary functions of a whole vector: 2^x, log, sqrt, SiLU and its derivative, sine and cosine of 2 pi u.
//
// Each is an exact reduction of the argument to a short interval, a polynomial there, and an exact reconstruction
// (J.-M. Muller, "Elementary Functions", 3rd ed., chapters 3 and 11). The polynomials are our own minimax fits, with
// coefficients rounded to float32 one at a time and the rest refitted. Errors are below 2.5 units in the last place (4
// for the derivative of SiLU), with or without fused multiply-add, where the result is not tiny (below 2e-36 in size it
// may be off by as much: subnormal numbers slow some processors down a hundredfold). NaN gives NaN, and infinities give
// the function's limit (NaN for sine and cosine).
#pragma once
#include "simd.h"

namespace pydiff {

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2, for -87 <= x <= 88, where n can be added to the exponent
// of exp(r). NaN gives any number.
inline vfloat exp_of_moderate(vfloat x) {
    // Adding 1.5 * 2^23 leaves no bits behind the point, so the sum's low bits are the integer n.
    const vfloat shifted = x * 1.44269504f + 12582912.0f;
    const vfloat n = shifted - 12582912.0f;
    // ln 2 in two parts (Cody and Waite 1980): the first has 15 bits, so n * 0.693145752 is exact.
    const vfloat r = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;
    vfloat p = r * 0x1.6a48fcp-10f + 0x1.12399cp-7f;
    p = p * r + 0x1.5558b4p-5f;
    p = p * r + 0x1.555492p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * (r * r) + r + 1.0f;
    return (vfloat)((vuint)p + ((vuint)shifted << 23));
}

// A constant that the compiler is not to know: it then stays in a register throughout a loop, where it would otherwise
// be loaded for every use, which takes longer than the use.
inline vfloat in_register(float x) {
    vfloat v = broadcast(x);
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__SSE2__)
    asm("" : "+x"(v));
#endif
    return v;
}

// 2^x = 2^n 2^r, n = round(x), |r| <= 1/2, for x < 127; exp(x) is 2^(x log2 e), if a factor of x can take in log2 e.
// Shorter than exp by the reduction, which is exact in one step. Results below 2^-126.5 are zero. For loops: make it
// in front, use it inside.
struct Exp2 {
    vfloat shift = in_register(12582912.0f), one = in_register(1.0f), c1 = in_register(0x1.62e43p-1f),
           c2 = in_register(0x1.ebfbdcp-3f), c3 = in_register(0x1.c6af7cp-5f), c4 = in_register(0x1.3b2dep-7f),
           c5 = in_register(0x1.5f083p-10f), c6 = in_register(0x1.416b5cp-13f);

    vfloat operator()(vfloat x) const {
        x = at_least(x, -127.0f);  // n = -127 has the exponent bits of zero
        const vfloat shifted = x + shift, r = x - (shifted - shift);
        vfloat p = r * c6 + c5;
        p = p * r + c4;
        p = p * r + c3;
        p = p * r + c2;
        p = p * r + c1;
        p = p * r + one;
        return p * (vfloat)(((vuint)shifted << 23) + (vuint)one);
    }
};

// ln(x) = e ln 2 + ln(1 + f), x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)). -inf at zero, NaN below.
inline vfloat log(vfloat x) {
    const vint subnormal = x < 0x1p-126f;
    const vfloat scaled = subnormal ? x * 0x1p23f : x;
    const vuint offset = (vuint)scaled - 0x3f3504f3u;  // the bits of sqrt(1/2)
    const vint e = (vint)offset >> 23;
    const vfloat f = (vfloat)((vuint)scaled - ((vuint)e << 23)) - 1.0f;
    const vfloat exponent = __builtin_convertvector(e, vfloat) - (subnormal ? broadcast(23.0f) : vfloat{});
    vfloat p = f * -0x1.38dc38p-4f + 0x1.056c20p-3f;
    p = p * f + -0x1.0d854cp-3f;
    p = p * f + 0x1.22d792p-3f;
    p = p * f + -0x1.54720cp-3f;
    p = p * f + 0x1.99a028p-3f;
    p = p * f + -0x1.000228p-2f;
    p = p * f + 0x1.555554p-2f;
    // Smallest terms first; 0.693145752 has 15 bits, so its product with the exponent is exact.
    const vfloat square = f * f;
    const vfloat tail = p * (square * f) + exponent * 1.42860677e-6f - 0.5f * square;
    vfloat result = exponent * 0.693145751953125f + (f + tail);
    const float infinity = __builtin_inff();
    result = x == infinity ? x : result;
    result = x == 0.0f ? broadcast(-infinity) : result;
    return x >= 0.0f ? result : broadcast(__builtin_nanf(""));
}

inline vfloat sqrt(vfloat x) {
    for (int i = 0; i < simd_width; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

// SiLU(x) = x sigma(x), sigma(x) = 1 / (1 + e^-x) (Elfwing, Uchibe and Doya 2018), also called swish. From 87 on
// e^-x adds nothing to 1, and below -87 the result is nearly zero.
inline vfloat silu(vfloat x) {
    x = at_least(x, -87.0f);
    return x / (1.0f + exp_of_moderate(at_least(-x, -87.0f)));
}

// The derivative of SiLU: sigma(x) (1 + x (1 - sigma(x))). 1 - sigma(x) is e^-x sigma(x): a difference would lose its
// digits where sigma(x) is nearly 1. Near the zero, -1.28, only the absolute error is small.
inline vfloat silu_derivative(vfloat x) {
    x = at_most(at_least(x, -87.0f), 87.0f);
    const vfloat e = exp_of_moderate(-x), s = 1.0f / (1.0f + e);
    return s * (1.0f + x * (e * s));
}

// sin(2 pi u) and cos(2 pi u) for any u. Working in turns makes the reduction to an eighth of a turn exact.
inline void sincos_turns(vfloat u, vfloat& sine, vfloat& cosine) {
    // The fraction of a turn; from 2^24 on every float is whole. Infinity and NaN become NaN.
    const vint small = (u < 0x1p24f) & (u > -0x1p24f);
    const vfloat whole = __builtin_convertvector(__builtin_convertvector(small ? u : vfloat{}, vint), vfloat);
    const vfloat turn = small ? u - whole : u * 0.0f;
    // r = turn - quarters / 4, |r| <= 1/8.
    const vfloat shifted = turn * 4.0f + 12582912.0f;
    const vuint quarters = (vuint)shifted;  // only its two lowest bits matter
    const vfloat r = turn - (shifted - 12582912.0f) * 0.25f;
    const vfloat t = r * r;
    vfloat s = t * -0x1.2db5c2p+6f + 0x1.465facp+6f;
    s = s * t + -0x1.4abbbep+5f;
    // 2 pi in two parts, since one float's rounding of it would already be half a unit in the last place.
    s = r * 6.28318548f + (r * -1.74845553e-7f + s * t * r);
    vfloat c = t * 0x1.d4f446p+5f + -0x1.55b2b2p+6f;
    c = c * t + 0x1.03c1b0p+6f;
    c = c * t + -0x1.3bd3ccp+4f;
    c = c * t + 1.0f;
    const vint swap = (vint)(quarters << 31) < 0;
    const vuint sine_sign = (quarters << 30) & 0x80000000u, cosine_sign = ((quarters + 1) << 30) & 0x80000000u;
    sine = (vfloat)((vuint)(swap ? c : s) ^ sine_sign);
    cosine = (vfloat)((vuint)(swap ? s : c) ^ cosine_sign);
}

}  // namespace pydiff
