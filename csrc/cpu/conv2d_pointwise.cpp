// Linear layers, and convolutions with 1 x 1 kernels: matrix products, where every pixel is a row.
//
//   (1)  y  (rows, cout) = x  (rows, cin)     w   (cin, cout)  + bias + add
//   (2)  dx (rows, cin)  = dy (rows, cout)    w^T (cout, cin)
//   (3)  dw (cin, cout)  = x^T (cin, rows)    dy  (rows, cout),     dbias = the sum of dy's rows
//
// Layout and work. A register tile (gemm.h) comes within a few hundredths of the processor's peak where b lies packed in
// L1 and a in L2: whatever is lost is lost on the way there.
//
//   - An item of work is a rectangle of the result: some rows and a strip of columns. Its strip of b, panel_depth deep, is
//     packed into L2 and meets the item's rows block by block; a block of a, block_rows x panel_depth, stays in L2 while
//     all panels of the strip pass. So memory is asked for w once for every few hundred rows, and for x once a strip.
//   - (1) packs no weights ahead of the product: the first tile of a panel copies what it multiplies, for which it has
//     time, and meanwhile the next panel's rows are fetched. Each of them lies in another page of memory, so the processor
//     foresees none. With the 64 or 77 rows of a text, a panel is used a dozen times only: packing it for itself would
//     be felt, and waiting for its rows even more.
//   - (2) with few rows computes dx^T, for which dy is packed and not w, and transposes it.
//   - (3) copies some rows of x side by side, because a tile would otherwise meet a line of the cache in every step.
//
// Order of summation: (1) and (2) by blocks of at most panel_depth, as in conv2d_direct.cpp; (3) by the blocks and parts
// of Cut. How the result is cut into items changes no bit, so it may follow the number of threads.
#include <algorithm>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

enum Slot { strip_slot, rows_slot, sums_slot, packed_slot, bias_slot };

constexpr int64_t block_rows = 16 * tile_rows;  // x panel_depth floats: 96 KB

// Parts of a result that every thread has some of to choose from; one thread alone takes what it likes best.
int64_t wanted_items(int64_t of_each = 8) { return threads() == 1 ? 1 : of_each * threads(); }

// The result (m, n) in items of at most `rows` x `columns`: whole blocks of rows and tiles of columns, as far as there
// are such.
struct Items {
    int64_t m, n, rows, columns, down, across;

    Items(int64_t m_, int64_t n_, int64_t most_columns, int64_t least_columns, int64_t wanted) : m(m_), n(n_) {
        const auto cut = [](int64_t size, int64_t most, int64_t unit) {
            const int64_t units = ceil_div(size, unit), pieces = ceil_div(units, std::max<int64_t>(1, most / unit));
            return ceil_div(units, std::max<int64_t>(1, pieces)) * unit;
        };
        rows = std::max(block_rows, cut(m, 5 * block_rows, block_rows));
        columns = std::max<int64_t>(tile_columns, cut(n, most_columns, tile_columns));
        while (ceil_div(m, rows) * ceil_div(n, columns) < wanted) {
            if (columns > least_columns && columns > tile_columns && (4 * columns > rows || rows == block_rows))
                columns = cut(n, columns - tile_columns, tile_columns);
            else if (rows > block_rows)
                rows = cut(m, rows - block_rows, block_rows);
            else
                break;
        }
        down = ceil_div(m, rows);
        across = ceil_div(n, columns);
    }
    int64_t count() const { return down * across; }
};

struct Rectangle {
    int64_t r, r_end, o, o_end;
};

// Neighbouring items share what there is more of.
Rectangle item_at(const Items& items, int64_t i) {
    const bool by_rows = items.m < items.n;
    const int64_t r = (by_rows ? i % items.down : i / items.across) * items.rows;
    const int64_t o = (by_rows ? i / items.down : i % items.across) * items.columns;
    return {r, std::min(r + items.rows, items.m), o, std::min(o + items.columns, items.n)};
}

// About what a product takes on one thread: for the arithmetic, and for reading the weights.
double nanoseconds(int64_t m, int64_t n, int64_t k) {
    return (0.02 * static_cast<double>(m) + 0.1) * static_cast<double>(n) * static_cast<double>(k);
}

// The right factor b (k, n): as it lies, or the transposed of what lies there, (n, k).
struct Factor {
    const float* first;
    int64_t step;  // from one row to the next, of what lies there
    bool transposed;

    const float* at(int64_t k, int64_t o) const { return first + (transposed ? o * step + k : k * step + o); }
};

// c (m, n) = a (m, k) b + bias + add
struct Product {
    int64_t m, n, k;
    const float* a;
    Factor b;
    const float *bias, *add;
    float* c;
};

void multiply(const Product& p, const Rectangle& at) {
    const int64_t cuts = std::max<int64_t>(1, ceil_div(p.k, panel_depth)), depth = ceil_div(p.k, cuts);
    const int64_t columns = at.o_end - at.o;
    float* const strip = scratch(strip_slot, static_cast<size_t>(depth * panel_width(columns)));
    for (int64_t k = 0, first = 1; first || k < p.k; k += depth, first = 0) {
        const int64_t count = std::min(depth, p.k - k);
        for (int64_t r = at.r; r < at.r_end; r += block_rows) {
            const int64_t rows = std::min(block_rows, at.r_end - r);
            for (int64_t o = at.o; o < at.o_end; o += tile_columns) {
                const int64_t width = std::min<int64_t>(tile_columns, at.o_end - o), pitch = panel_width(width);
                float* const panel = strip + (o - at.o) * count;
                const float *b = panel, *const from = p.b.at(k, o);
                int64_t ldb = pitch;
                Beside beside;
                if (r > at.r) {
                    // packed by the first block of rows
                } else if (p.b.transposed) {
                    pack_transposed(width, count, from, p.b.step, panel, pitch);
                } else if (width < tile_columns) {
                    pack_panel(count, width, from, p.b.step, panel);
                } else {
                    b = from;
                    ldb = p.b.step;
                    beside.panel = rows > tile_rows ? panel : nullptr;
                    beside.next_step = p.b.step;
                    if (o + tile_columns < at.o_end)
                        beside.next = from + tile_columns;
                    else if (k + depth < p.k)
                        beside.next = p.b.at(k + depth, at.o);
                }
                beside.fetch_c = cuts > 1;
                gemm_panel(Order::rows, rows, width, count, p.a + r * p.k + k, p.k, b, ldb,
                           Start{p.bias ? p.bias + o : nullptr, !first}, p.c + r * p.n + o, p.n, {}, beside);
            }
        }
    }
    for (int64_t r = at.r; p.add && r < at.r_end; ++r)
        for (int64_t o = at.o; o < at.o_end; ++o) p.c[r * p.n + o] += p.add[r * p.n + o];
}

void multiply(const Product& p) {
    if (p.m * p.n == 0) return;
    const Items items(p.m, p.n, 128, 32, wanted_items());
    parallel_for(items.count(), 1, [&](int64_t i) { multiply(p, item_at(items, i)); }, nanoseconds(p.m, p.n, p.k));
}

// dx^T (cin, rows) = w (cin, cout) dy^T (cout, rows): dy is packed, once for all, and w multiplied where it lies. With
// few rows that saves what packing w would take.
constexpr int64_t few_rows = 256;

void multiply_exchanged(int64_t rows, int64_t cin, int64_t cout, const float* dy, const float* w, float* dx) {
    const int64_t cuts = std::max<int64_t>(1, ceil_div(cout, panel_depth)), depth = ceil_div(cout, cuts);
    const int64_t pitch = panel_width(rows), tiles = ceil_div(rows, tile_columns);
    const auto depth_at = [&](int64_t cut) { return std::max<int64_t>(0, std::min(depth, cout - cut * depth)); };
    float* const packed = scratch(packed_slot, static_cast<size_t>(cout * pitch));  // by cuts, in each panel by panel
    const auto panel_at = [&](int64_t cut, int64_t r) { return packed + cut * depth * pitch + depth_at(cut) * r; };
    parallel_for(
        cuts * tiles, 1,
        [&](int64_t item) {
            const int64_t cut = item / tiles, r = item % tiles * tile_columns;
            const int64_t width = std::min<int64_t>(tile_columns, rows - r);
            const float* const from = dy + r * cout + cut * depth;
            pack_transposed(width, depth_at(cut), from, cout, panel_at(cut, r), panel_width(width));
        },
        0.3 * static_cast<double>(rows) * static_cast<double>(cout));
    const int64_t share = ceil_div(ceil_div(cin, wanted_items()), tile_rows) * tile_rows;
    const int64_t channels = std::clamp<int64_t>(share, 4 * tile_rows, block_rows);  // of dx, in an item
    parallel_for(
        ceil_div(cin, channels), 1,
        [&](int64_t item) {
            const int64_t c = item * channels, count = std::min(channels, cin - c);
            float* const sums = scratch(sums_slot, static_cast<size_t>(count * pitch));
            for (int64_t cut = 0; cut < cuts; ++cut)
                for (int64_t r = 0; r < rows; r += tile_columns) {
                    const int64_t width = std::min<int64_t>(tile_columns, rows - r);
                    const float* const panel = panel_at(cut, r);
                    Beside beside;
                    beside.next = panel + depth_at(cut) * panel_width(width);
                    beside.next_step = tile_columns;
                    gemm_panel(Order::rows, count, width, depth_at(cut), w + c * cout + cut * depth, cout, panel,
                               panel_width(width), Start{nullptr, cut > 0}, sums + r, pitch, {}, beside);
                }
            transpose(count, rows, sums, pitch, dx + c, cin);
        },
        nanoseconds(rows, cin, cout));
}

// dw and dbias

// How their sums are cut: the rows into blocks, which a tile adds up without a stop, and these into parts, which may be
// added up at the same time. By shapes only.
struct Cut {
    int64_t rows, block, blocks, part, parts;

    explicit Cut(const Conv2dShape& s) : rows(s.n * s.h * s.w) {
        blocks = ceil_div(rows, panel_depth);
        block = ceil_div(rows, blocks);
        part = blocks_of_a_part(s, blocks, block, 512);
        parts = ceil_div(blocks, part);
    }
};

// bias (width) += the sum of the rows of a packed panel
void add_rows(int64_t count, int64_t width, const float* panel, int64_t pitch, float* bias) {
    for (int64_t o = 0; o < width; o += simd_width) {
        vfloat sum{};
        for (int64_t r = 0; r < count; ++r) sum += load(panel + r * pitch + o);
        store_upto(bias + o, load_upto(bias + o, width - o) + sum, width - o);
    }
}

// sum (the rectangle of dw, rows of `pitch` floats) = the products of one part. bias: of the rectangle's columns, or null.
void part_of_weights(const Conv2dShape& s, const Cut& cut, int64_t part, const float* dy, const float* x,
                     const Rectangle& at, float* sum, int64_t pitch, float* bias) {
    static constexpr float zeros[tile_columns] = {};
    const int64_t together = std::max<int64_t>(1, panel_depth / cut.block) * cut.block;  // rows that are packed at once
    const int64_t first = part * cut.part * cut.block, end = std::min(first + cut.part * cut.block, cut.rows);
    const int64_t columns = at.o_end - at.o;
    float* const strip = scratch(strip_slot, static_cast<size_t>(together * panel_width(columns)));
    float* const xs = scratch(rows_slot, static_cast<size_t>(together * panel_width(block_rows)));
    if (bias) std::fill(bias, bias + columns, 0.0f);
    for (int64_t k = first; k < end; k += together) {
        const int64_t count = std::min(together, end - k);
        for (int64_t r = at.r; r < at.r_end; r += block_rows) {
            const int64_t rows = std::min(block_rows, at.r_end - r);
            pack_panel(count, rows, x + k * s.cin + r, s.cin, xs);
            // the rows that are packed next, some of them beside every panel
            const bool down = r + block_rows < at.r_end;
            const int64_t soon = down ? k : k + together, share = ceil_div(together, ceil_div(columns, tile_columns));
            const int64_t last = std::max(soon, std::min(soon + together, end));
            const float* const next = x + (down ? r + block_rows : at.r);
            int64_t asked = soon;
            for (int64_t o = at.o; o < at.o_end; o += tile_columns) {
                const int64_t width = std::min<int64_t>(tile_columns, at.o_end - o), step = panel_width(width);
                float* const panel = strip + (o - at.o) * count;
                if (r == at.r) {
                    pack_panel(count, width, dy + k * s.cout + o, s.cout, panel);
                    for (int64_t b = 0; bias && b < count; b += cut.block)
                        add_rows(std::min(cut.block, count - b), width, panel + b * step, step, bias + (o - at.o));
                }
                prefetch_rows(std::min(share, last - asked), block_rows, next + asked * s.cin, s.cin);
                asked = std::min(asked + share, last);
                for (int64_t b = 0; b < count; b += cut.block) {
                    const bool begin = k + b == first;
                    gemm_panel(Order::columns, rows, width, std::min(cut.block, count - b), xs + b * panel_width(rows),
                               panel_width(rows), panel + b * step, step, Start{begin ? zeros : nullptr, !begin},
                               sum + (r - at.r) * pitch + (o - at.o), pitch);
                }
            }
        }
    }
}

}  // namespace

void pointwise_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y) {  // (1)
    multiply({s.n * s.h * s.w, s.cout, s.cin, x, {w, s.cout, false}, addends.bias, addends.add, y});
}

void pointwise_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {  // (2)
    const int64_t rows = s.n * s.h * s.w;
    if (rows <= few_rows) return multiply_exchanged(rows, s.cin, s.cout, dy, w, dx);
    multiply({s.n * s.h * s.w, s.cin, s.cout, dy, {w, s.cout, true}, nullptr, nullptr, dx});
}

void pointwise_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw, float* dbias) {  // (3)
    const Cut cut(s);
    const int64_t size = s.cin * s.cout;
    const Items items(s.cin, s.cout, 320, 64, wanted_items(4));  // small ones pack x and dy oftener
    float* const biases = scratch(bias_slot, static_cast<size_t>(cut.parts * s.cout));
    const auto bias_of = [&](int64_t part, const Rectangle& at) {
        return dbias && at.r == 0 ? biases + part * s.cout + at.o : nullptr;
    };
    // The parts of a rectangle one after the other, or, if there are few rectangles, each on its own and then their sum.
    const bool together = cut.parts == 1 || threads() == 1 || items.count() >= 2 * threads();
    if (together) {
        parallel_for(items.count(), 1, [&](int64_t item) {
            const Rectangle at = item_at(items, item);
            const int64_t columns = at.o_end - at.o;
            float* const to = dw + at.r * s.cout + at.o;
            part_of_weights(s, cut, 0, dy, x, at, to, s.cout, bias_of(0, at));
            for (int64_t part = 1; part < cut.parts; ++part) {
                float* const sum = scratch(sums_slot, static_cast<size_t>((at.r_end - at.r) * columns));
                part_of_weights(s, cut, part, dy, x, at, sum, columns, bias_of(part, at));
                for (int64_t r = 0; r < at.r_end - at.r; ++r)
                    for (int64_t o = 0; o < columns; ++o) to[r * s.cout + o] += sum[r * columns + o];
            }
        });
    } else {
        float* const partial = scratch(packed_slot, static_cast<size_t>(cut.parts * size));
        parallel_for(items.count() * cut.parts, 1, [&](int64_t item) {
            const Rectangle at = item_at(items, item / cut.parts);
            const int64_t part = item % cut.parts;
            part_of_weights(s, cut, part, dy, x, at, partial + part * size + at.r * s.cout + at.o, s.cout,
                            bias_of(part, at));
        });
        constexpr int64_t strip = 512;
        parallel_for(ceil_div(size, strip), 4, [&](int64_t item) {
            const int64_t first = item * strip, count = std::min(strip, size - first);
            sum_parts(cut.parts, size, count, partial + first);
            std::copy_n(partial + first, count, dw + first);
        });
    }
    if (dbias) {
        sum_parts(cut.parts, s.cout, s.cout, biases);
        std::copy_n(biases, s.cout, dbias);
    }
}

}  // namespace pydiff
