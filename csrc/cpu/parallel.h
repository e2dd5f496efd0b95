// Threads: one pool for the whole process, and scratch memory per thread.
//
// The rule every kernel keeps: work is divided into items by the *shape of one image*, never by batch size or thread
// count, and no two items add into the same number. Which thread runs an item then cannot change a bit of the result.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace pydiff {

// A borrowed reference to a callable void(int64_t begin, int64_t end); cheaper than std::function, never owns.
class RangeBody {
public:
    template <class F>
    RangeBody(F& f)
        : object_(const_cast<void*>(static_cast<const void*>(&f))),
          call_([](void* object, int64_t begin, int64_t end) { (*static_cast<F*>(object))(begin, end); }) {}
    void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

private:
    void* object_;
    void (*call_)(void*, int64_t, int64_t);
};

// Runs body over [0, count) in chunks of `grain` items. Every thread starts with its own share of consecutive chunks
// and then helps with the others', so a busy core does not hold them up: a chunk's neighbours, and the same part of the
// arrays in the next region, are likely on the same core. Runs inline when one chunk suffices, when the pool is busy
// with another Python thread's region, or when called from inside a region. An exception thrown by the body is rethrown
// here, once all threads have stopped.
// nanoseconds: about what the whole region takes on one thread. A short one is left to the threads that are awake.
void parallel_chunks(int64_t count, int64_t grain, const RangeBody& body, double nanoseconds);

constexpr double long_enough = 1e9;  // for regions that are worth waking threads for, whatever their size

template <class F>
void parallel_for(int64_t count, int64_t grain, F&& item, double nanoseconds = long_enough) {
    auto range = [&item](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) item(i);
    };
    parallel_chunks(count, grain, RangeBody(range), nanoseconds);
}

// The same with something that every thread makes for itself in its scratch, before the first item it claims.
int64_t next_preparation();      // a number that no other region of this process has
int64_t& prepared_by_thread();  // the calling thread's last
template <class Prepare, class F>
void parallel_for_prepared(int64_t count, Prepare&& prepare, F&& item, double nanoseconds = long_enough) {
    const int64_t region = next_preparation();
    parallel_for(count, 1, [&](int64_t i) {
        if (prepared_by_thread() != region) prepare();
        prepared_by_thread() = region;
        item(i);
    }, nanoseconds);
}

constexpr double worth_claiming = 4000;  // nanoseconds of work: less is done sooner than another thread has joined in

// For elementwise work on n samples of `size` elements: item(i, begin, end) for every tile of elements of every sample
// i. nanoseconds: about what one element takes. As many tiles are claimed at once as make a claim worth its cost.
template <class F>
void parallel_tiles(int64_t n, int64_t size, int64_t tile, double nanoseconds, F&& item) {
    const int64_t tiles = (size + tile - 1) / tile, longest = size < tile ? size : tile;
    const double claim = worth_claiming / (nanoseconds * static_cast<double>(longest + 1));
    parallel_for(
        n * tiles, static_cast<int64_t>(claim) + 1,
        [&](int64_t k) {
            const int64_t begin = k % tiles * tile;
            item(k / tiles, begin, begin + tile < size ? begin + tile : size);
        },
        nanoseconds * static_cast<double>(n) * static_cast<double>(size));
}

int threads();            // threads a region may use, the caller included
void set_threads(int n);  // n >= 1, else std::invalid_argument; waits for a running region, so not to be called in one

// Uninitialised 64-byte aligned scratch owned by the calling thread; the same slot returns the same memory (grown when
// needed), so two buffers alive at once need two slots. Freed when the thread ends.
constexpr int scratch_slots = 8;
float* scratch(int slot, size_t count);
void release_scratch();  // what the calling thread has goes back, outside of regions

}  // namespace pydiff
