// The PTX instructions that CUDA C++ has no name for, as functions: assembly under nvcc, the emulator otherwise.
//
// Fragments of the matrices are described in mma.h, landing times of copies in copies.h. Shared addresses are given as
// ordinary pointers into shared memory.
#pragma once
#include "device.h"

#if !defined(__CUDACC__)
#include "copies.h"
#include "mma.h"
#define PYDIFF_SITE , simt::Site site = simt::Site::here()
#define PYDIFF_PTX inline
#else
#define PYDIFF_SITE
#define PYDIFF_PTX __device__ __forceinline__
#endif

namespace pydiff {

#if defined(__CUDACC__)
__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
#endif

// ---- elementary functions ----------------------------------------------------------------------------------------

// The square root to within a relative 2^-23, in one step of the special-function unit: sqrt.approx.ftz.f32. Numbers
// below 2^-126 count as 0. Here it is rounded correctly.
PYDIFF_PTX float sqrt_approx(float x) {
#if defined(__CUDACC__)
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
#else
    return std::sqrt(std::fabs(x) < 0x1p-126f ? 0.0f * x : x);
#endif
}

// ---- asynchronous copies: cp.async -------------------------------------------------------------------------------

// Starts a copy of `bytes` (4, 8 or 16) from global to shared memory; what is after source_bytes becomes zero.
template <int bytes>
PYDIFF_PTX void copy_async(void* shared, const void* global, unsigned source_bytes = bytes PYDIFF_SITE) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(__CUDACC__)
    if constexpr (bytes == 16)  // .cg: through L2 only
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(source_bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                     "n"(bytes), "r"(source_bytes) : "memory");
#else
    simt::copy_async(shared, global, bytes, source_bytes, site);
#endif
}

// Makes a group of the copies this thread has started since the last commit.
PYDIFF_PTX void commit_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    simt::commit_copies();
#endif
}

// Waits until all but the `newest` last groups of this thread have landed. Other threads need a barrier after it.
template <int newest>
PYDIFF_PTX void wait_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
#else
    simt::wait_copies(newest);
#endif
}

// ---- matrices from shared memory: ldmatrix -----------------------------------------------------------------------

// Loads 1, 2 or 4 matrices of 8 x 8 values of 16 bits; `row` is aligned to 16 bytes.
template <bool transposed = false, int count>
PYDIFF_PTX void load_matrix(uint32_t (&r)[count], const void* row PYDIFF_SITE) {
    static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 matrices");
#if defined(__CUDACC__)
    const unsigned address = shared_address(row);
#define PYDIFF_LDMATRIX(suffix)                                                                                        \
    if constexpr (count == 1)                                                                                          \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" suffix ".shared.b16 {%0}, [%1];"                                  \
                     : "=r"(r[0]) : "r"(address) : "memory");                                                          \
    else if constexpr (count == 2)                                                                                     \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" suffix ".shared.b16 {%0, %1}, [%2];"                              \
                     : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");                                              \
    else                                                                                                               \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" suffix ".shared.b16 {%0, %1, %2, %3}, [%4];"                      \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory")
    if constexpr (transposed) {
        PYDIFF_LDMATRIX(".trans");
    } else {
        PYDIFF_LDMATRIX("");
    }
#undef PYDIFF_LDMATRIX
#else
    simt::ldmatrix(r, count, transposed, row, site);
#endif
}

// ---- matrix products: mma.sync -----------------------------------------------------------------------------------

// d = a b + c, 16 x 8 = (16 x 16) (16 x 8) + 16 x 8: bfloat16, sums in float32. d and c may be the same.
PYDIFF_PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         const float (&c)[4] PYDIFF_SITE) {
#if defined(__CUDACC__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    simt::mma_m16n8k16_bf16(d, a, b, c, site);
#endif
}

// d = a b + c, 16 x 8 = (16 x 8) (8 x 8) + 16 x 8: tf32 in 32-bit registers, made by to_tf32; sums in float32.
PYDIFF_PTX void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         const float (&c)[4] PYDIFF_SITE) {
#if defined(__CUDACC__)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    simt::mma_m16n8k8_tf32(d, a, b, c, site);
#endif
}

// float32 to tf32 (10 bits of mantissa), to nearest, ties away from zero: cvt.rna.tf32.f32.
PYDIFF_PTX uint32_t to_tf32(float x) {
#if defined(__CUDACC__)
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7F800000u) == 0x7F800000u) return bits;  // infinity and NaN stay
    return (bits + 0x1000u) & ~0x1FFFu;
#endif
}

// ---- arithmetic --------------------------------------------------------------------------------------------------

// 2^x by ex2.approx.ftz: one instruction, to about 2 units in the last place; what is below 2^-126 becomes 0.
PYDIFF_PTX float exp2_fast(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return x < -126.0f ? 0.0f : std::exp2(x);
#endif
}

}  // namespace pydiff
