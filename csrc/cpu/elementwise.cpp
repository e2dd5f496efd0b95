// Contract in elementwise.h. Memory bandwidth is the limit: a few threads reach it, one does not.
#include "elementwise.h"

#include <algorithm>

#include "parallel.h"

namespace pydiff {
namespace {

constexpr int64_t tile = 16384;       // floats of one work item
constexpr double nanoseconds = 0.25;  // about what a float of the result takes

// Calls item(i) for rows of `size` floats, as many at a time as are worth a claim.
template <class F>
void for_rows(int64_t rows, int64_t size, F&& item) {
    parallel_tiles(rows, size, std::max<int64_t>(size, 1), nanoseconds, [&](int64_t i, int64_t, int64_t) { item(i); });
}

}  // namespace

void add_rows(int64_t rows, int64_t b_rows, int64_t size, const float* a, const float* b, float* out) {
    if (rows == b_rows) {
        parallel_tiles(1, rows * size, tile, nanoseconds, [&](int64_t, int64_t begin, int64_t end) {
            for (int64_t e = begin; e < end; ++e) out[e] = a[e] + b[e];
        });
        return;
    }
    const int64_t repeat = rows / std::max<int64_t>(b_rows, 1);
    for_rows(rows, size, [&](int64_t i) {
        const float *const ai = a + i * size, *const bi = b + i / repeat * size;
        for (int64_t e = 0; e < size; ++e) out[i * size + e] = ai[e] + bi[e];
    });
}

void join_rows(int64_t rows, int64_t a_size, int64_t b_size, const float* a, const float* b, float* out) {
    const int64_t size = a_size + b_size;
    for_rows(rows, size, [&](int64_t i) {
        std::copy(a + i * a_size, a + (i + 1) * a_size, out + i * size);
        std::copy(b + i * b_size, b + (i + 1) * b_size, out + i * size + a_size);
    });
}

void split_rows(int64_t rows, int64_t a_size, int64_t b_size, const float* joined, float* a, float* b) {
    const int64_t size = a_size + b_size;
    for_rows(rows, size, [&](int64_t i) {
        std::copy(joined + i * size, joined + i * size + a_size, a + i * a_size);
        std::copy(joined + i * size + a_size, joined + (i + 1) * size, b + i * b_size);
    });
}

}  // namespace pydiff
