#include "mma.h"

#include "memory.h"

namespace pydiff::simt {
namespace {

constexpr uint32_t whole_warp = ~0u;

struct MmaOperand {
    const uint32_t *a, *b;
    const float* c;
    float* d;
};

struct Bf16 {  // m16n8k16
    static constexpr int k = 16, a_values = 8, b_values = 4;
    static int a_row(int i, int group) { return group + (i & 2 ? 8 : 0); }
    static int a_column(int i, int t) { return 2 * t + (i & 1) + (i & 4 ? 8 : 0); }
    static int b_row(int i, int t) { return 2 * t + (i & 1) + (i & 2 ? 8 : 0); }
    static float value(const uint32_t* registers, int i) {
        return __uint_as_float(i & 1 ? registers[i / 2] & 0xFFFF0000u : registers[i / 2] << 16);
    }
};

struct Tf32 {  // m16n8k8
    static constexpr int k = 8, a_values = 4, b_values = 2;
    static int a_row(int i, int group) { return group + (i & 1 ? 8 : 0); }
    static int a_column(int i, int t) { return t + (i & 2 ? 4 : 0); }
    static int b_row(int i, int t) { return t + (i & 1 ? 4 : 0); }
    static float value(const uint32_t* registers, int i) { return __uint_as_float(registers[i] & ~0x1FFFu); }
};

template <class Shape>
void multiply(void* const* operands, uint32_t) {
    float a[16][Shape::k], b[Shape::k][8];
    for (int lane = 0; lane < warp_size; ++lane) {
        const auto& mine = *static_cast<const MmaOperand*>(operands[lane]);
        const int group = lane / 4, t = lane % 4;
        for (int i = 0; i < Shape::a_values; ++i)
            a[Shape::a_row(i, group)][Shape::a_column(i, t)] = Shape::value(mine.a, i);
        for (int i = 0; i < Shape::b_values; ++i) b[Shape::b_row(i, t)][group] = Shape::value(mine.b, i);
    }
    for (int lane = 0; lane < warp_size; ++lane) {
        const auto& mine = *static_cast<const MmaOperand*>(operands[lane]);
        const int group = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = group + (i & 2 ? 8 : 0), column = 2 * t + (i & 1);
            double sum = mine.c[i];
            for (int k = 0; k < Shape::k; ++k) sum += double(a[row][k]) * double(b[k][column]);
            mine.d[i] = float(sum);
        }
    }
}

struct LoadOperand {
    const unsigned char* row;
    uint32_t* registers;
    int count;
    bool transposed;
};

void load_matrices(void* const* operands, uint32_t) {
    const auto operand = [&](int lane) { return static_cast<const LoadOperand*>(operands[lane]); };
    for (int lane = 0; lane < warp_size; ++lane) {
        const LoadOperand& mine = *operand(lane);
        for (int matrix = 0; matrix < mine.count; ++matrix) {
            uint16_t pair[2];
            for (int i = 0; i < 2; ++i) {
                const int along = 2 * (lane % 4) + i, across = lane / 4;
                const int row = mine.transposed ? along : across, column = mine.transposed ? across : along;
                std::memcpy(&pair[i], operand(8 * matrix + row)->row + 2 * column, 2);
            }
            mine.registers[matrix] = uint32_t(pair[1]) << 16 | pair[0];
        }
    }
}

// mma and ldmatrix are instructions of the whole warp.
void check_whole_warp(const char* name, Site site) {
    const Thread& me = running();
    const uint32_t missing = ~me.block->warps[me.warp].alive;
    if (missing)
        fault(site, std::string(name) + ": lane " + std::to_string(__builtin_ctz(missing)) +
                        " of the warp does not take part");
}

void warp_instruction(const char* name, void* operand, Compute compute, Site site) {
    check_whole_warp(name, site);
    meet(name, whole_warp, operand, compute, false, site);
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], Site site) {
    float result[4];  // d and c may be the same registers
    MmaOperand operand{a, b, c, result};
    warp_instruction("mma.m16n8k16", &operand, multiply<Bf16>, site);
    std::memcpy(d, result, sizeof result);
}

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], Site site) {
    float result[4];
    MmaOperand operand{a, b, c, result};
    warp_instruction("mma.m16n8k8", &operand, multiply<Tf32>, site);
    std::memcpy(d, result, sizeof result);
}

void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Site site) {
    const Thread& me = running();
    if (me.lane < 8 * count) {
        check_aligned(row, 16, "a row of ldmatrix", site);
        if (!me.block->shared.contains(row, 16)) fault(site, "ldmatrix reads outside the block's shared arrays");
        note_read(row, 16);
    }
    LoadOperand operand{static_cast<const unsigned char*>(row), registers, count, transposed};
    warp_instruction(transposed ? "ldmatrix.trans" : "ldmatrix", &operand, load_matrices, site);
}

}  // namespace pydiff::simt
