// The types CUDA gives every kernel: small vectors with CUDA's alignment, dim3, and bfloat16.
//
// Source: CUDA C++ Programming Guide, "Built-in Vector Types"; CUDA Math API, "Bfloat16 Precision Conversion".
#pragma once
#include <cstdint>
#include <cstring>

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The upper half of a float32: 1 sign bit, 8 exponent bits, 7 bits of mantissa. Uninitialised by default, as on a GPU.
struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

template <class To, class From>
To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bits_as needs two types of one size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float x) { return bits_as<int>(x); }

inline float __bfloat162float(__nv_bfloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }

// Rounds to nearest, ties to even; every NaN becomes 0x7FFF. Adding 0x7FFF plus the lowest bit that stays carries into
// the upper half exactly when the lower half is above one half, or equal to it with an odd upper half.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (x != x) return {0x7FFF};
    return {uint16_t((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
