// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a vector of
// blocks at a time, and normals from it. pydiff/random.py is the reference: the words agree bit for bit, normals to
// rounding.
//
//     key      (seed low word, seed high word)
//     counter  (block, step, sample, purpose)          element i of a sample is word i % 4 of block i // 4
#pragma once
#include <utility>

#include "kernels.h"
#include "simd_math.h"

namespace pydiff {

typedef uint64_t vulong __attribute__((vector_size(4 * simd_width)));

// The 64-bit products of the even elements (the low halves of each 64 bits).
inline vulong multiply_even(vulong a, vulong b) {
#if defined(__AVX512F__)
    // All lanes by a mask: GCC 12 warns about an uninitialised value inside the unmasked form.
    return (vulong)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vulong)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (vulong)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
    return (vulong)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// x * multiplier in full: the upper and lower 32 bits of each product.
inline void multiply_wide(vuint x, uint32_t multiplier, vuint& high, vuint& low) {
    const vulong m = vulong{} + multiplier;
    const vulong even = multiply_even((vulong)x, m), odd = multiply_even((vulong)x >> 32, m);
    high = (vuint)((even >> 32) | (odd & 0xffffffff00000000u));
    low = (vuint)((even & 0xffffffffu) | (odd << 32));
}

// One block in each element of c0 .. c3: the counter goes in, four random words come out.
inline void philox4x32(uint64_t seed, vuint& c0, vuint& c1, vuint& c2, vuint& c3) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        vuint high0, low0, high1, low1;
        multiply_wide(c0, 0xD2511F53u, high0, low0);
        multiply_wide(c2, 0xCD9E8D57u, high1, low1);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;  // the golden ratio and sqrt(3) - 1, in units of 2^-32
        k1 += 0xBB67AE85u;
    }
}

// Box and Muller (1958): two words to two independent normals. Both uniforms are multiples of 2^-24, exact in float:
//     r = sqrt(-2 ln(((w_even >> 8) + 1) 2^-24)),   theta = 2 pi (w_odd >> 8) 2^-24,   z = r cos(theta), r sin(theta)
inline void box_muller(vuint even, vuint odd, vfloat& z_even, vfloat& z_odd) {
    const vfloat u = __builtin_convertvector((vint)(even >> 8) + 1, vfloat) * 0x1p-24f;
    const vfloat turns = __builtin_convertvector((vint)(odd >> 8), vfloat) * 0x1p-24f;
    const vfloat r = sqrt(-2.0f * log(u));
    vfloat sine, cosine;
    sincos_turns(turns, sine, cosine);
    z_even = r * cosine;
    z_odd = r * sine;
}

// The first (or last) half of every 128 bits of a and b, interleaved.
template <size_t... I>
inline vfloat interleave_first(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * simd_width)...);
}
template <size_t... I>
inline vfloat interleave_last(vfloat a, vfloat b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 4 / 2 + I % 2 * simd_width)...);
}

// How many consecutive elements of a sample `normals` and `uniforms` make at once.
constexpr int64_t drawn_width = 4 * simd_width;

// The words of elements [first, first + drawn_width) of sample i of the batch; first is a multiple of 4. Element p of
// w[k] is word k of block (p % 4) (simd_width / 4) + p / 4: blocks are dealt so that `in_order` needs one transposition.
inline void drawn_words(const NoiseKey& key, int64_t i, int64_t first, vuint w[4]) {
    vuint block;
    for (int p = 0; p < simd_width; ++p) block[p] = static_cast<uint32_t>(p % 4 * (simd_width / 4) + p / 4);
    w[0] = block + static_cast<uint32_t>(first / 4), w[1] = vuint{} + key.step[i];
    w[2] = vuint{} + key.sample[i], w[3] = vuint{} + key.purpose;
    philox4x32(key.seed, w[0], w[1], w[2], w[3]);
}

// What was made of each of those words, in the order of the elements: transposing four vectors within each 128 bits puts
// a block's four numbers side by side.
inline void in_order(vfloat z[4]) {
    const auto all = std::make_index_sequence<simd_width>();
    const vfloat even_first = interleave_first(z[0], z[2], all), even_last = interleave_last(z[0], z[2], all);
    const vfloat odd_first = interleave_first(z[1], z[3], all), odd_last = interleave_last(z[1], z[3], all);
    z[0] = interleave_first(even_first, odd_first, all);
    z[1] = interleave_last(even_first, odd_first, all);
    z[2] = interleave_first(even_last, odd_last, all);
    z[3] = interleave_last(even_last, odd_last, all);
}

// Standard normals for elements [first, first + drawn_width) of sample i, in order; first is a multiple of 4.
inline void normals(const NoiseKey& key, int64_t i, int64_t first, vfloat z[4]) {
    vuint w[4];
    drawn_words(key, i, first, w);
    box_muller(w[0], w[1], z[0], z[1]);
    box_muller(w[2], w[3], z[2], z[3]);
    in_order(z);
}

// Uniform numbers in [0, 1), multiples of 2^-24, for the same elements.
inline void uniforms(const NoiseKey& key, int64_t i, int64_t first, vfloat u[4]) {
    vuint w[4];
    drawn_words(key, i, first, w);
    for (int k = 0; k < 4; ++k) u[k] = __builtin_convertvector((vint)(w[k] >> 8), vfloat) * 0x1p-24f;
    in_order(u);
}

}  // namespace pydiff
