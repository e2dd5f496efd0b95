// The kernels that prove the emulator: each is right with Plant::none, and has faults that a test asks for by name.
//
// The functions take device pointers and launch on the null stream; under nvcc they are ordinary launchers.
#pragma once
#include <cstdint>

namespace pydiff::selftest {

enum class Plant {
    none,
    missing_barrier,    // block_sum
    divergent_barrier,  // block_sum
    off_by_one,         // block_sum: an index
    overrun,            // block_sum: the same through a pointer
    uninitialised,      // block_sum
    missed_tail,        // scale
    misaligned,         // scale
    past_end,           // scale: writes behind the output
    missing_wait,       // stage: none at all
    late_wait,          // stage: for the group before the one that is used
    wrong_fragment,     // matmul_bf16, matmul_tf32
    own_lane_missing,   // collectives
    divergent_warp,     // collectives
    deadlock,           // collectives
};
constexpr const char* plant_names[] = {
    "none",        "missing_barrier", "divergent_barrier", "off_by_one",     "overrun",          "uninitialised",
    "missed_tail", "misaligned",      "past_end",          "missing_wait",   "late_wait",        "wrong_fragment",
    "own_lane_missing", "divergent_warp", "deadlock",
};

constexpr int sum_threads = 64;      // elements of x to one block of block_sum
constexpr int collective_rows = 15;  // rows of what collectives writes

void block_sum(const float* x, float* sums, int n, Plant plant);               // (n,) -> (ceil(n / 64),)
void scale(const float* x, float* y, int n, float factor, Plant plant);        // (n,) -> (n,)
void stage(const float* x, float* y, int n, Plant plant);                      // (n,) -> (n,), tiles of 64 reversed
void matmul_bf16(const float* a, const float* b, float* c, int m, int n, int k, Plant plant);  // (m,k) (k,n) -> (m,n)
void matmul_tf32(const float* a, const float* b, float* c, int m, int n, int k, Plant plant);
void collectives(const int* x, int* rows, Plant plant);                        // (32,) -> (15, 32)
void fragments(const uint16_t* x, uint32_t* out);                              // (32, 8) -> (14, 32)
void atomics(const int* x, int* totals, float* sum, int n);                    // (n,) -> (4,), (1,); set beforehand

}  // namespace pydiff::selftest
