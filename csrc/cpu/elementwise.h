// Sums and copies of large arrays on all threads, for the array path: NumPy does them on one. They are no operations of
// their own (pydiff/ops has those, with their gradients) and give the bits that NumPy gives.
#pragma once
#include <cstdint>

namespace pydiff {

// out[i, e] = a[i, e] + b[i / (rows / b_rows), e], e < size; rows is a multiple of b_rows.
void add_rows(int64_t rows, int64_t b_rows, int64_t size, const float* a, const float* b, float* out);

// out[i] = a[i] and behind it b[i], for rows of a_size and b_size floats.
void join_rows(int64_t rows, int64_t a_size, int64_t b_size, const float* a, const float* b, float* out);

// The other way round: the first a_size floats of every row into a, the b_size behind them into b.
void split_rows(int64_t rows, int64_t a_size, int64_t b_size, const float* joined, float* a, float* b);

// Weights as files have them, w[o, i, k] of outputs, inputs and taps, in the order that convolutions take:
//
//   out[(k inputs + i) pitch + o] = w[o, i, k]
//
// With `half` they are in half precision (IEEE 754 binary16), and widened; a NaN keeps its bits.
void turn_weights(int64_t outputs, int64_t inputs, int64_t taps, const float* w, int64_t pitch, float* out);
void turn_weights(int64_t outputs, int64_t inputs, int64_t taps, const uint16_t* half, int64_t pitch, float* out);

}  // namespace pydiff
