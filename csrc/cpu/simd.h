// A vector of floats as wide as the instruction set that this module is compiled for (GCC and Clang vector extensions,
// so the same source serves SSE2, AVX2, AVX-512 and NEON). Nothing here is specific to one operation.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace pydiff {

#if defined(__AVX512F__)
constexpr int simd_width = 16;
#elif defined(__AVX2__)
constexpr int simd_width = 8;
#else
constexpr int simd_width = 4;
#endif

// How many vectors the processor holds: what a register tile may be made of.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int simd_registers = 32;
#else
constexpr int simd_registers = 16;
#endif

typedef float vfloat __attribute__((vector_size(4 * simd_width)));
typedef int32_t vint __attribute__((vector_size(4 * simd_width)));
typedef uint32_t vuint __attribute__((vector_size(4 * simd_width)));

inline vfloat load(const float* p) {
    vfloat v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
inline vfloat broadcast(float x) { return x - vfloat{}; }

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits set in the first `count` elements.
inline __m256i first_lanes(int64_t count) {
    const vint lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (__m256i)(lane < static_cast<int32_t>(count));
}
#endif

// The first `count` (0 to simd_width) floats; the others are zero, and memory behind them is not touched.
inline vfloat load_partial(const float* p, int64_t count) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__)
    return (vfloat)_mm256_maskload_ps(p, first_lanes(count));
#else
    vfloat v{};
    std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
    return v;
#endif
}
inline void store_partial(float* p, vfloat v, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
#else
    std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(float));
#endif
}

// max(x, low) and min(x, high); NaN stays NaN. One instruction where the compiler would make two of the comparison.
inline vfloat at_least(vfloat x, float low) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_max_ps(0xffff, (__m512)broadcast(low), (__m512)x);
#elif defined(__AVX2__)
    return (vfloat)_mm256_max_ps((__m256)broadcast(low), (__m256)x);
#elif defined(__SSE2__)
    return (vfloat)_mm_max_ps((__m128)broadcast(low), (__m128)x);
#elif defined(__ARM_NEON)
    return (vfloat)vmaxq_f32((float32x4_t)broadcast(low), (float32x4_t)x);
#else
    return x < low ? broadcast(low) : x;
#endif
}
inline vfloat at_most(vfloat x, float high) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_min_ps(0xffff, (__m512)broadcast(high), (__m512)x);
#elif defined(__AVX2__)
    return (vfloat)_mm256_min_ps((__m256)broadcast(high), (__m256)x);
#elif defined(__SSE2__)
    return (vfloat)_mm_min_ps((__m128)broadcast(high), (__m128)x);
#elif defined(__ARM_NEON)
    return (vfloat)vminq_f32((float32x4_t)broadcast(high), (float32x4_t)x);
#else
    return x > high ? broadcast(high) : x;
#endif
}

// A whole vector, or the last few floats of a row.
inline vfloat load_upto(const float* p, int64_t count) {
    return count >= simd_width ? load(p) : load_partial(p, count);
}
inline void store_upto(float* p, vfloat v, int64_t count) {
    if (count >= simd_width)
        store(p, v);
    else
        store_partial(p, v, count);
}

}  // namespace pydiff
