// The pool of csrc/cpu/parallel.cpp: a region runs every item once, waits for its threads and hands on what they throw;
// what a thread keeps for itself is its own, and a forked child has its own pool. Made so that a fault shows as a wrong
// result, whatever the threads' order; a race between them is for ThreadSanitizer (cross.py --thread-sanitize).
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "../../cuda/check/check.h"
#include "../../threads.h"

namespace pydiff::check {
namespace {

void rest() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

// A region of two items: the caller's ends as soon as the worker's has begun, which then takes another 20 ms.
void check_waits() {
    static std::atomic<bool> begun, done;  // outlive the region, should a worker come late
    int met = 0;
    for (int round = 0; round < 200 && met < 5; ++round) {
        set_threads(many_threads);
        begun = done = false;
        const auto caller = std::this_thread::get_id();
        parallel_for(2, 1, [caller](int64_t) {
            if (std::this_thread::get_id() == caller) {
                for (int i = 0; i < 20 && !begun; ++i) rest();
            } else if (!begun.exchange(true)) {
                for (int i = 0; i < 20; ++i) rest();
                done = true;
            }
        });
        if (begun && !done) {
            fail("a region ended before its items");
            for (int i = 0; i < 100 && !done; ++i) rest();  // the worker is still at it
            return;
        }
        met += begun;
    }
    if (met < 5) fail("no worker helped");
}

// What a worker throws; the caller's own items throw nothing.
void check_exceptions() {
    int thrown = 0;
    for (int round = 0; round < 100 && thrown < 3; ++round) {
        set_threads(many_threads);
        const auto caller = std::this_thread::get_id();
        std::atomic<bool> helped{false};
        try {
            parallel_for(64, 1, [&](int64_t) {
                rest();
                if (std::this_thread::get_id() == caller) return;
                helped = true;
                throw std::runtime_error("from a worker");
            });
            if (helped) return fail("what a worker threw was lost");
        } catch (const std::runtime_error& error) {
            if (std::string(error.what()) != "from a worker") fail(error.what());
            ++thrown;
        }
    }
    if (thrown < 3) fail("no worker was there to throw");
    for (int64_t bad = 0; bad < 40; ++bad) {  // only one item, wherever it runs
        std::atomic<int> after{0};
        try {
            parallel_for(40, 1, [&](int64_t i) {
                if (i == bad) throw std::runtime_error(std::to_string(i));
            });
            return fail("what one item threw was lost");
        } catch (const std::runtime_error& error) {
            if (std::string(error.what()) != std::to_string(bad)) return fail(error.what());
        }
        parallel_for(40, 1, [&](int64_t) { ++after; });
        if (after != 40) return fail("a region after one that threw");
    }
}

// Every item of a region is run once, in chunks of `grain` that begin at its multiples.
void check_once() {
    const std::pair<int64_t, int64_t> cases[] = {{-1, 1}, {0, 1}, {1, 1}, {1, 5},  {2, 1},   {7, 3},
                                                 {64, 1}, {65, 8}, {6, 0}, {97, 96}, {1000, 7}};
    for (int threads = 1; threads <= many_threads; ++threads) {
        set_threads(threads);
        for (const auto& [count, grain] : cases) {
            std::vector<std::atomic<int>> runs(static_cast<size_t>(std::max<int64_t>(count, 0)));
            std::atomic<int> odd{0};
            const int64_t most = std::max<int64_t>(grain, 1);
            auto body = [&runs, &odd, most, count = count](int64_t begin, int64_t end) {
                odd += begin < 0 || begin >= end || end > count || begin % most != 0 || end - begin > most;
                for (int64_t i = begin; i < end && i < count; ++i) {
                    ++runs[static_cast<size_t>(i)];
                    if (i % 16 == 0) std::this_thread::yield();
                }
            };
            const int rounds = count < 8 ? 40 : 5;
            for (int round = 0; round < rounds; ++round) {
                for (auto& n : runs) n = 0;
                parallel_chunks(count, grain, RangeBody(body), long_enough);
                if (odd) return fail("a chunk that none should be");
                for (auto& n : runs)
                    if (n != 1) return fail("an item was run " + std::to_string(n) + " times");
            }
        }
    }
}

// A region inside a region runs on the thread that asks for it, and regions after it on several again.
void check_nested() {
    set_threads(many_threads);
    std::atomic<int> elsewhere{0}, items{0};
    parallel_for(16, 1, [&](int64_t) {
        const auto here = std::this_thread::get_id();
        parallel_for(16, 1, [&](int64_t) {
            elsewhere += std::this_thread::get_id() != here;
            ++items;
        });
        rest();
    });
    if (elsewhere || items != 256) fail("a region inside a region");
    for (int threads : {many_threads, 2}) {
        set_threads(threads);
        size_t most = 0;
        for (int round = 0; round < 50 && most < 2; ++round) {
            std::vector<std::thread::id> ran_on(64);
            parallel_for(64, 1, [&](int64_t i) {
                rest();
                ran_on[static_cast<size_t>(i)] = std::this_thread::get_id();
            });
            most = std::set<std::thread::id>(ran_on.begin(), ran_on.end()).size();
        }
        if (most < 2) fail("no worker helped after a region inside a region");
        if (most > static_cast<size_t>(threads)) fail("more threads than were set");
    }
}

// Every thread prepares before its first item, again in every region.
void check_prepared() {
    thread_local int prepared_for = -1;
    set_threads(many_threads);
    for (int region = 0; region < 100; ++region) {
        std::atomic<int> wrong{0}, prepared{0};
        parallel_for_prepared(
            40,
            [&, region] {
                prepared_for = region;
                ++prepared;
            },
            [&, region](int64_t i) {
                wrong += prepared_for != region;
                if (i % 8 == 0) rest();
            });
        if (wrong) return fail("an item was run before its thread was prepared");
        if (prepared < 1 || prepared > many_threads) return fail("threads were prepared twice");
    }
}

const int at_first = threads();  // before anybody sets another number

void check_numbers() {
    if (at_first != default_threads()) fail("another number of threads than is usual");
    for (int n : {0, -1, most_threads + 1}) {
        try {
            set_threads(n);
            fail("so many threads were taken: " + std::to_string(n));
        } catch (const std::invalid_argument&) {
        }
    }
    for (int n : {1, 3, most_threads, 2}) {
        set_threads(n);
        if (threads() != n) fail("another number of threads than was set");
    }
}

// Memory of a thread's own: aligned, one piece a slot, kept while it is long enough, and grown.
void check_scratch() {
    auto use = [] {
        float* pieces[scratch_slots];
        for (int slot = 0; slot < scratch_slots; ++slot) {
            pieces[slot] = scratch(slot, static_cast<size_t>(100 + slot));
            if (reinterpret_cast<uintptr_t>(pieces[slot]) % 64) fail("scratch that is not aligned");
            std::fill(pieces[slot], pieces[slot] + 100 + slot, static_cast<float>(slot));
        }
        for (int slot = 0; slot < scratch_slots; ++slot) {
            if (scratch(slot, static_cast<size_t>(slot ? 100 + slot : 0)) != pieces[slot]) fail("scratch that is made anew");
            for (int i = 0; i < 100 + slot; ++i)
                if (pieces[slot][i] != static_cast<float>(slot)) return fail("slots of scratch that overlap");
        }
        float* longer = scratch(3, 1 << 20);
        std::fill(longer, longer + (1 << 20), 1.0f);
        if (scratch(3, 5) != longer) fail("scratch that shrinks");
#if !defined(__SANITIZE_ADDRESS__)  // which ends the process itself where there is no memory
        for (int round = 0; round < 2; ++round) {
            try {
                scratch(4, size_t{1} << 58);
                fail("scratch that there is no memory for");
            } catch (const std::bad_alloc&) {
            }
        }
#endif
        float* again = scratch(4, 1000);
        std::fill(again, again + 1000, 2.0f);
        return longer[(1 << 20) - 1] == 1.0f ? void() : fail("scratch that is too short");
    };
    use();
    std::thread(use).join();
}

// Forking is omitted under ThreadSanitizer, which cannot follow it, and where an emulator may run this.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
// How many threads ran the items of a region, each of which took a while.
size_t helpers() {
    std::vector<std::thread::id> ran_on(64);
    parallel_for(64, 1, [&](int64_t i) {
        rest();
        ran_on[i] = std::this_thread::get_id();
    });
    return std::set<std::thread::id>(ran_on.begin(), ran_on.end()).size();
}

int child() {
    alarm(10);  // a lock that the parent held would never be free
    set_threads(3);
    size_t most = 0;
    for (int round = 0; round < 5; ++round) most = std::max(most, helpers());
    set_threads(2);
    return most > 1 ? 0 : 1;
}

// In a separate process that has room for a few threads: the number in the message must be available.
void check_few() {
#if defined(__SANITIZE_ADDRESS__)
    return;  // which ends the process itself where it finds no room
#endif
    const pid_t pid = fork();
    if (pid == 0) {
        alarm(10);  // as above
        rlimit room{};
        long pages = 0;
        if (std::unique_ptr<FILE, int (*)(FILE*)> file{std::fopen("/proc/self/statm", "r"), std::fclose})
            if (std::fscanf(file.get(), "%ld", &pages) != 1) _exit(5);
        room.rlim_cur = room.rlim_max = static_cast<rlim_t>(pages) * 4096 + (rlim_t{100} << 20);
        if (setrlimit(RLIMIT_AS, &room) != 0) _exit(0);
        set_threads(500);
        int most = 0;
        try {
            parallel_for(64, 1, [](int64_t) { rest(); });
            _exit(2);
        } catch (const std::bad_alloc& error) {
            if (std::sscanf(error.what(), "the system allows only %d of 500 threads", &most) != 1) _exit(3);
        }
        set_threads(most);
        std::atomic<int> items{0};
        parallel_for(64, 1, [&](int64_t) { ++items; });
        _exit(items == 64 ? 0 : 4);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (status != 0) fail("too few threads: status " + std::to_string(status));
}

void check_fork() {
    // AddressSanitizer's allocator, unlike the C library's, leaves a child the locks that other threads held, and a
    // thread that starts allocates: all have started before the first fork, and allocate nothing from then on.
    set_threads(3);
    for (int round = 0; round < 200 && helpers() < 3; ++round) {}  // so that there is a pool
    std::atomic<bool> begun{false}, over{false};
    std::thread other([&] {
        begun = true;
        while (!over) parallel_for(64, 1, [](int64_t) { rest(); });
    });
    while (!begun) rest();
    int status = 0;
    for (int i = 0; i < 4 && status == 0; ++i) {
        if (i == 2) {  // twice while another thread is in a region, twice while none is
            over = true;
            other.join();
        }
        const pid_t pid = fork();
        if (pid == 0) _exit(child());
        waitpid(pid, &status, 0);
        if (status != 0) fail("a forked child " + std::string(WIFEXITED(status) ? "had no threads" : "was stuck"));
    }
    over = true;
    if (other.joinable()) other.join();
}
#else
void check_few() {}
void check_fork() {}
#endif

const Op parallel_op("parallel", {check_once, check_nested, check_prepared, check_numbers, check_scratch, check_waits,
                                  check_exceptions, check_fork, check_few});

}  // namespace
}  // namespace pydiff::check
