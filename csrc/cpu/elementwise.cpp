// Contract in elementwise.h. Memory bandwidth is the limit: a few threads reach it, one does not.
#include "elementwise.h"

#include <algorithm>
#include <cstring>

#include "gemm.h"
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

// The float of a half: 5 bits of exponent become 8, and the numbers below the least of them are made by a subtraction.
inline float widened(uint16_t half) {
    constexpr uint32_t least = 1 << 23, rebias = 112 << 23, infinite = 31 << 23;
    const uint32_t rest = static_cast<uint32_t>(half & 0x7fff) << 13, sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const auto as_float = [](uint32_t bits) {
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    };
    const float below = as_float(rest + rebias + least) - as_float(rebias + least);
    uint32_t bits;
    std::memcpy(&bits, &below, sizeof bits);
    bits = rest < least ? bits : rest + rebias;
    return as_float(sign | (rest < infinite ? bits : rest | 0x7f800000));  // infinity, NaN
}

// A matrix of floats, and from one row to the next: w's rows, or a copy of them as floats in `made`.
struct Floats {
    const float* first;
    int64_t pitch;
};
Floats as_floats(int64_t, int64_t, const float* w, int64_t pitch, float*) { return {w, pitch}; }
Floats as_floats(int64_t rows, int64_t columns, const uint16_t* w, int64_t pitch, float* made) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) made[i * columns + j] = widened(w[i * pitch + j]);
    return {made, columns};
}

constexpr int64_t turned_rows = 64, turned_columns = 64;  // of a tile, which stays in the L1 cache

template <class T>
void turn(int64_t outputs, int64_t inputs, int64_t taps, const T* w, int64_t pitch, float* out) {
    constexpr int64_t size = turned_rows * turned_columns;
    const int64_t line = inputs * taps, down = ceil_div(outputs, turned_rows), along = ceil_div(line, turned_columns);
    parallel_tiles(down * along, size, size, 2 * nanoseconds, [&](int64_t item, int64_t, int64_t) {
        float* const memory = scratch(0, 2 * size);
        const int64_t o = item / along * turned_rows, first = item % along * turned_columns;
        const int64_t rows = std::min(turned_rows, outputs - o), columns = std::min(turned_columns, line - first);
        const Floats tile = as_floats(rows, columns, w + o * line + first, line, memory);
        float* const turned = memory + size;
        const int64_t width = panel_width(rows);
        pack_transposed(rows, columns, tile.first, tile.pitch, turned, width);
        for (int64_t e = 0; e < columns; ++e) {
            const int64_t i = (first + e) / taps, k = (first + e) % taps;
            std::memcpy(out + (k * inputs + i) * pitch + o, turned + e * width, sizeof(float) * static_cast<size_t>(rows));
        }
    });
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

void turn_weights(int64_t outputs, int64_t inputs, int64_t taps, const float* w, int64_t pitch, float* out) {
    turn(outputs, inputs, taps, w, pitch, out);
}

void turn_weights(int64_t outputs, int64_t inputs, int64_t taps, const uint16_t* half, int64_t pitch, float* out) {
    turn(outputs, inputs, taps, half, pitch, out);
}

}  // namespace pydiff
