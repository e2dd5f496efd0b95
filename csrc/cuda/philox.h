// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and normals
// from it, for one CUDA thread. pydiff/random.py is the reference: the words agree bit for bit, normals to rounding.
//
//     key      (seed low word, seed high word)
//     counter  (block, step, sample, purpose)          element i of a sample is word i % 4 of block i // 4
//
// A kernel that reads bfloat16 and draws has as much to compute as to move, so instructions count: knowing the few
// numbers they are given, the functions below make four normals in 176 instructions of sm_90, where logf, sqrtf and
// sincospif take 254. The polynomials are those of csrc/cpu/simd_math.h.
#pragma once
#include "../simt/ptx.h"
#include "kernels.h"

namespace pydiff {

__device__ __forceinline__ uint4 philox4x32(uint64_t seed, uint4 c) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
        k0 += 0x9E3779B9u;  // the golden ratio and sqrt(3) - 1, in units of 2^-32
        k1 += 0xBB67AE85u;
    }
    return c;
}

// -ln(m 2^-24), m = 1 .. 2^24. With m = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)): (24 - e) ln 2 - ln(1 + f). Exact at
// m = 2^24, where it is 0, and near it, as its square root has to be.
__device__ __forceinline__ float minus_log(uint32_t m) {
    const uint32_t bits = __float_as_uint(float(m));
    const uint32_t power = (bits - 0x3F3504F3u) & 0xFF800000u;  // e, in the exponent's place; 0x3F3504F3 is sqrt(1/2)
    const float f = __uint_as_float(bits - power) - 1.0f;
    const float exponent = fmaf(float(int(power)), 0x1p-23f, -24.0f);  // e - 24
    float p = fmaf(f, -0x1.38dc38p-4f, 0x1.056c20p-3f);
    p = fmaf(p, f, -0x1.0d854cp-3f);
    p = fmaf(p, f, 0x1.22d792p-3f);
    p = fmaf(p, f, -0x1.54720cp-3f);
    p = fmaf(p, f, 0x1.99a028p-3f);
    p = fmaf(p, f, -0x1.000228p-2f);
    p = fmaf(p, f, 0x1.555554p-2f);
    // ln 2 in two parts, smallest terms first; 0.693145752 has 15 bits, so its product with the exponent is exact.
    const float square = f * f;
    const float tail = fmaf(p, square * f, fmaf(-0.5f, square, exponent * 1.42860677e-6f));
    return -fmaf(exponent, 0.693145751953125f, f + tail);
}

// sin and cos of 2 pi word 2^-32, to the upper 24 bits of word. word is rotated by whole quarters of a turn to
// -1/8 .. 1/8 turn, exactly.
__device__ __forceinline__ void sincos_word(uint32_t word, float& sine, float& cosine) {
    const uint32_t quarters = (word + 0x20000000u) & 0xC0000000u;  // in the two highest bits
    const float r = float(int((word & 0xFFFFFF00u) - quarters)) * 0x1p-32f, t = r * r;
    float s = fmaf(t, -0x1.2db5c2p+6f, 0x1.465facp+6f);
    s = fmaf(s, t, -0x1.4abbbep+5f);
    s = fmaf(r, 6.28318548f, fmaf(s, t, -1.74845553e-7f) * r);  // 2 pi in two parts
    float c = fmaf(t, 0x1.d4f446p+5f, -0x1.55b2b2p+6f);
    c = fmaf(c, t, 0x1.03c1b0p+6f);
    c = fmaf(c, t, -0x1.3bd3ccp+4f);
    c = fmaf(c, t, 1.0f);
    const bool swap = quarters & 0x40000000u;
    sine = __uint_as_float(__float_as_uint(swap ? c : s) ^ (quarters & 0x80000000u));
    cosine = __uint_as_float(__float_as_uint(swap ? s : c) ^ ((quarters + 0x40000000u) & 0x80000000u));
}

// Box and Muller (1958): two words to two independent normals, by the 24 upper bits of each:
//     r = sqrt(-2 ln(((w_even >> 8) + 1) 2^-24)),   theta = 2 pi (w_odd >> 8) 2^-24,   z = r cos(theta), r sin(theta)
__device__ __forceinline__ float2 box_muller(uint32_t even, uint32_t odd) {
    const float r = sqrt_approx(2.0f * minus_log((even >> 8) + 1));
    float sine, cosine;
    sincos_word(odd, sine, cosine);
    return make_float2(r * cosine, r * sine);
}

// Elements 4 block .. 4 block + 3 of sample i of the batch.
__device__ __forceinline__ void normals(const NoiseKey& key, int64_t i, uint32_t block, float (&z)[4]) {
    const uint4 w = philox4x32(key.seed, make_uint4(block, key.step[i], key.sample[i], key.purpose));
    const float2 first = box_muller(w.x, w.y), second = box_muller(w.z, w.w);
    z[0] = first.x, z[1] = first.y, z[2] = second.x, z[3] = second.y;
}

}  // namespace pydiff
