// One block of CUDA threads on one CPU thread: who runs, who waits, and what they may not do.
//
// A thread runs until it must wait for others, or ends. Then any thread that is ready continues, drawn at random from
// the seed: code that is right only in one order fails for some seed. Of one block nothing runs at the same time as
// anything else, so a missing barrier shows as a wrong order here and not as a torn value; the race build (sanitize.py)
// finds the rest. Other CPU threads may run other blocks of the grid (grid.cpp).
//
// Sources: CUDA C++ Programming Guide, "Synchronization Functions", "Warp Vote Functions", "Warp Shuffle Functions".
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "guarded.h"
#include "types.h"

namespace pydiff::simt {

constexpr int warp_size = 32;
constexpr unsigned max_threads = 1024;
constexpr size_t max_shared_bytes = 227 << 10;  // a block's shared memory on sm_90, static and dynamic
constexpr size_t max_static_bytes = 48 << 10;   // of which arrays of a size known to the compiler

// Small, quick and the same everywhere: xorshift64*, Vigna 2016.
class Order {
public:
    // Every stream of a seed is a separate order; the mixing is that of splitmix64.
    void seed(uint64_t seed, uint64_t stream) {
        uint64_t z = (seed + 1) * 0x9E3779B97F4A7C15u + stream * 0xD1B54A32D192ED03u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        state_ = z ^ z >> 31;
        if (state_ == 0) state_ = 1;  // from which it would not move
    }
    unsigned below(size_t n) {
        state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
        return unsigned((state_ * 0x2545F4914F6CDD1Du >> 32) * n >> 32);
    }

private:
    uint64_t state_ = 1;
};

// A cp.async that was issued and has not been waited for (copies.cpp).
struct Copy {
    unsigned char* destination;
    const unsigned char* source;
    unsigned bytes, source_bytes;  // the rest becomes zero
    int group;                     // number of the commit that covers it, or -1
    Site site;
    bool landed = false;
};

struct Block;

struct Thread {
    Block* block;
    uint3 index;
    int rank, lane, warp;
    bool done;
    const char* waits_for;  // "__syncthreads", .., or null while ready
    Site site;              // where it waits, or waited last
    std::vector<Copy> copies;
    int groups;             // committed so far
    std::unique_ptr<Fiber> fiber;
};

// What some lanes of a warp do together. The last to arrive does the work of all: compute(operands, arrived lanes).
using Compute = void (*)(void* const* operands, uint32_t lanes);
struct Rendezvous {
    uint32_t mask = 0, arrived = 0;
    Compute compute = nullptr;
    const char* name = "";
    Site site;
    std::array<void*, warp_size> operands;
    unsigned generation = 0;
    char sync[2];  // addresses for the race build: neighbouring generations must not be taken for one another
};
struct Warp {
    uint32_t alive = 0;                // lanes that have not ended
    std::deque<Rendezvous> meetings;   // one a mask, so that parts of a warp may meet while others wait for all
};

struct Block {
    Block();
    dim3 grid, dim;
    uint3 index{};
    const char* kernel = "";
    Order order;
    bool late_copies = true;  // asynchronous copies land when waited for, or else at any barrier before

    std::vector<std::unique_ptr<Thread>> threads;  // kept for the next block; the first `count` belong to this one
    int count = 0, alive = 0;
    std::vector<Thread*> ready;
    std::vector<Warp> warps;

    int at_barrier = 0;
    unsigned barrier_generation = 0;
    char barrier_sync[2];
    Site barrier_site, last_barrier;

    GuardedMemory shared;
    size_t static_bytes = 0;
    unsigned char* dynamic = nullptr;
    size_t dynamic_bytes = 0;

    void* call = nullptr;            // the kernel and its arguments
    void (*run_call)(void*) = nullptr;
    std::exception_ptr error;
    Fiber scheduler;

    void run(uint3 block_index, size_t dynamic_shared_bytes);  // throws the first Fault of any thread
    void check_shared() const;
};

extern thread_local Thread* current;  // the CUDA thread that runs now, or null outside a kernel
Thread& running();                    // the same; Fault outside a kernel
std::string triple(unsigned x, unsigned y, unsigned z);  // "(1, 0, 0)"
void where();                         // for a debugger: prints how many threads of the block wait, and where

void barrier(Site site);  // __syncthreads
// The lanes of `mask` meet. The same mask must be given by all of them, on the same line. `orders_memory`: what was
// written before is visible to the others afterwards (__syncwarp); the others of the family promise no such thing.
void meet(const char* name, uint32_t mask, void* operand, Compute compute, bool orders_memory, Site site);

void land_some_copies(Thread& thread);    // copies.cpp: at a synchronisation point, when copies are not late
void check_copies_done(Thread& thread);   // copies.cpp: at the thread's end

// What a launch does, besides its result. One record a CPU thread; those of a launch's helpers are added to its own.
struct Counters {
    uint64_t switches = 0, barriers = 0, collectives = 0, atomics = 0, copies = 0;
    uint64_t helpers = 0;  // CPU threads started
    Counters& operator+=(const Counters& other);
};
extern thread_local Counters counters;
void set_seed(uint64_t seed);  // of this thread's launches to come: order of threads and blocks; odd: copies land early
int threads();                 // CPU threads a launch may use, the calling one included
void set_threads(int n);       // 1 to 8; std::invalid_argument. At first PYDIFF_THREADS, or the number of processors

// Runs the blocks of a grid, begun in an order drawn from the seed. Throws what the first of them in this order throws.
// Not for use inside a kernel.
void run_grid(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes, void* call, void (*run)(void*));

}  // namespace pydiff::simt
