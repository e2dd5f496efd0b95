// The blocks of a grid, on one CPU thread or several.
//
// Blocks are started in an order drawn from the seed; the next free worker takes the next one. What a block does
// depends on the seed and its own number, not on who runs it, so the result is the same for any number of CPU threads
// as long as blocks do not depend on one another.
#include <atomic>
#include <chrono>
#include <mutex>
#include <numeric>
#include <system_error>
#include <thread>

#include "../threads.h"
#include "block.h"

namespace pydiff::simt {
namespace {

constexpr int most_cpu_threads = 8;  // CPU threads of a launch
thread_local uint64_t launch_seed = 0;
std::atomic<int> wanted_threads{0};  // 0: not decided yet

// Starting and joining a CPU thread takes some 25 us, and more on a busy machine. Help is called when the blocks that
// are left will take much longer: by their number of CUDA threads, of which the idlest takes 0.1 us, or judging by the
// blocks that are done. So short launches do not pay.
using Clock = std::chrono::steady_clock;
constexpr double worth_helping = 500e-6, least_of_a_thread = 0.1e-6;  // seconds

struct Launch {
    const char* kernel;
    dim3 grid, dim;
    size_t dynamic_shared_bytes;
    void* call;
    void (*run_call)(void*);
    uint64_t seed;
    std::vector<uint32_t> blocks = {};                // in the order in which they begin
    std::atomic<size_t> next{0}, failed{SIZE_MAX};    // places in that order: the first not begun, the first that threw
    std::mutex mutex = {};                            // for what follows
    std::exception_ptr error = {};                    // of `failed`
    Counters counters = {};                           // of the helpers

    // Runs the next block; false if there is none, or none that matters.
    bool step(Block& block) {
        const size_t place = next.fetch_add(1);
        if (place >= blocks.size() || place > failed) return false;
        const uint32_t b = blocks[place];
        block.grid = grid, block.dim = dim, block.kernel = kernel, block.call = call, block.run_call = run_call;
        block.late_copies = seed % 2 == 0;
        block.order.seed(seed, b);
        try {
            block.run({b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y}, dynamic_shared_bytes);
        } catch (...) {
            current = nullptr;
            const std::lock_guard<std::mutex> lock(mutex);
            if (place < failed) failed = place, error = std::current_exception();
        }
        return true;
    }
    void help(Block& block) {
        while (step(block)) {
        }
        const std::lock_guard<std::mutex> lock(mutex);
        counters += simt::counters;
    }
};

// Threads for one launch: none are left when it is over, so there is nothing that a fork could lose.
class Helpers {
public:
    explicit Helpers(Launch& launch) : launch_(launch) {}
    ~Helpers() {
        for (std::thread& thread : threads_) thread.join();
    }
    // blocks: memory of the launching thread, kept from launch to launch; the first is its own.
    void start(std::vector<std::unique_ptr<Block>>& blocks, size_t count) {
        while (blocks.size() < count) blocks.push_back(std::make_unique<Block>());
        try {
            for (size_t i = 1; i < count; ++i) threads_.emplace_back(&Launch::help, &launch_, std::ref(*blocks[i]));
        } catch (const std::system_error&) {  // the system has no more threads; those there are do the work
        }
        counters.helpers += threads_.size();
    }

private:
    Launch& launch_;
    std::vector<std::thread> threads_;
};

}  // namespace

Counters& Counters::operator+=(const Counters& other) {
    switches += other.switches, barriers += other.barriers, collectives += other.collectives;
    atomics += other.atomics, copies += other.copies, helpers += other.helpers;
    return *this;
}

void set_seed(uint64_t seed) { launch_seed = seed; }

int threads() {
    int undecided = 0;
    if (wanted_threads == 0)
        wanted_threads.compare_exchange_strong(undecided, std::min(default_threads(), most_cpu_threads));
    return wanted_threads;
}

void set_threads(int n) {
    if (n < 1 || n > most_cpu_threads)
        throw std::invalid_argument("threads must be from 1 to " + std::to_string(most_cpu_threads) + ", got " +
                                    std::to_string(n));
    wanted_threads = n;
}

void run_grid(const char* kernel, dim3 grid, dim3 dim, size_t dynamic_shared_bytes, void* call, void (*run)(void*)) {
    if (current) fault({}, "a kernel was launched inside a kernel");
    const Site where{kernel, 0};
    const uint64_t size = uint64_t(dim.x) * dim.y * dim.z;
    if (size == 0 || size > max_threads || dim.z > 64)
        fault(where, "a block of " + std::to_string(size) + " threads; 1 to 1024 are possible, and 64 in z");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535)
        fault(where, "a grid of " + triple(grid.x, grid.y, grid.z) + "; 1 to 2147483647, 65535, 65535 are possible");
    if (dynamic_shared_bytes > max_shared_bytes)
        fault(where, std::to_string(dynamic_shared_bytes) + " bytes of dynamic shared memory; a block has 232448");

    Launch launch{kernel, grid, dim, dynamic_shared_bytes, call, run, launch_seed};
    launch.blocks.resize(size_t(grid.x) * grid.y * grid.z);
    std::iota(launch.blocks.begin(), launch.blocks.end(), 0u);
    Order order;
    order.seed(launch_seed, ~uint64_t(0));
    for (size_t i = launch.blocks.size(); i > 1; --i) std::swap(launch.blocks[i - 1], launch.blocks[order.below(i)]);

    // with their fibers: making a thousand stacks costs more than most kernels
    static thread_local std::vector<std::unique_ptr<Block>> blocks;
    if (blocks.empty()) blocks.push_back(std::make_unique<Block>());
    const auto begin = Clock::now();
    {
        Helpers helpers(launch);
        bool alone = threads() > 1;
        for (size_t done = 0, all = launch.blocks.size(); done < all; ++done) {
            const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
            const double of_a_block = std::max(least_of_a_thread * double(size), done ? seconds / double(done) : 0.0);
            if (alone && of_a_block * double(all - done - 1) >= worth_helping) {
                helpers.start(blocks, std::min<size_t>(threads(), all - done));
                alone = false;
            }
            if (!launch.step(*blocks[0])) break;
        }
    }
    counters += launch.counters;
    if (launch.error) std::rethrow_exception(launch.error);
}

}  // namespace pydiff::simt
