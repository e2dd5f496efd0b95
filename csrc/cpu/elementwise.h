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

}  // namespace pydiff
