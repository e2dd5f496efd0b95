// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and normals
// from it, for one CUDA thread. pydiff/random.py is the reference: the words agree bit for bit, normals to rounding.
//
//     key      (seed low word, seed high word)
//     counter  (block, step, sample, purpose)          element i of a sample is word i % 4 of block i // 4
#pragma once
#include "kernels.h"

namespace pydiff {

__device__ __forceinline__ uint4 philox4x32(uint64_t seed, uint4 c) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * c.x, product1 = uint64_t{0xCD9E8D57u} * c.z;  // mul.wide
        c = make_uint4(uint32_t(product1 >> 32) ^ c.y ^ k0, uint32_t(product1), uint32_t(product0 >> 32) ^ c.w ^ k1,
                       uint32_t(product0));
        k0 += 0x9E3779B9u;  // the golden ratio and sqrt(3) - 1, in units of 2^-32
        k1 += 0xBB67AE85u;
    }
    return c;
}

// Box and Muller (1958): two words to two independent normals. Both uniforms are multiples of 2^-24, exact in float:
//     r = sqrt(-2 ln(((w_even >> 8) + 1) 2^-24)),   theta = 2 pi (w_odd >> 8) 2^-24,   z = r cos(theta), r sin(theta)
// logf, not __logf: near u = 1 the fast one has no correct digit left, and r comes from its square root.
__device__ __forceinline__ float2 box_muller(uint32_t even, uint32_t odd) {
    const float u = float((even >> 8) + 1) * 0x1p-24f;
    const float r = sqrtf(-2.0f * logf(u));
    float sine, cosine;
    sincospif(float(odd >> 8) * 0x1p-23f, &sine, &cosine);  // theta / pi, exact
    return make_float2(r * cosine, r * sine);
}

// Elements 4 block .. 4 block + 3 of sample i of the batch.
__device__ __forceinline__ void normals(const NoiseKey& key, int64_t i, uint32_t block, float (&z)[4]) {
    const uint4 w = philox4x32(key.seed, make_uint4(block, key.step[i], key.sample[i], key.purpose));
    const float2 first = box_muller(w.x, w.y), second = box_muller(w.z, w.w);
    z[0] = first.x, z[1] = first.y, z[2] = second.x, z[3] = second.y;
}

}  // namespace pydiff
