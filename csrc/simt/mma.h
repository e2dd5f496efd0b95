// Tensor-core instructions, by the fragment tables of the PTX ISA.
//
// A matrix of an mma is spread over the 32 lanes of a warp; with group = lane / 4 and t = lane % 4:
//
//     m16n8k16, bf16        row                            column
//       A (16 x 16), a[0..7]  group, +8 for i in 2 3 6 7     2 t + (i & 1), +8 for i >= 4      two to a register
//       B (16 x 8),  b[0..3]  2 t + (i & 1), +8 for i >= 2   group                             two to a register
//     m16n8k8, tf32
//       A (16 x 8),  a[0..3]  group, +8 for i in 1 3         t, +4 for i >= 2
//       B (8 x 8),   b[0..1]  t, +4 for i = 1                group
//     both: C and D (16 x 8)
//       c[0..3]               group, +8 for i >= 2           2 t + (i & 1)
//
// Sources: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", "Matrix Fragments for mma.m16n8k8",
// "Warp-level matrix load instruction: ldmatrix".
#pragma once
#include "block.h"

namespace pydiff::simt {

// d = a b + c. The products are exact; their sum with c is formed in float64 and rounded once, which is at least as
// exact as the hardware, whose order and rounding of the sum are not specified.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], Site site);
// The lowest 13 bits of every operand are ignored.
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], Site site);

// Loads `count` (1, 2 or 4) matrices of 8 x 8 values of 16 bits. Row r of matrix m is the 16 bytes at the `row` that
// lane 8 m + r gives. Register m of a lane gets row lane / 4, columns 2 (lane % 4) and the next; transposed: rows
// 2 (lane % 4) and the next, column lane / 4.
void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Site site);

}  // namespace pydiff::simt
