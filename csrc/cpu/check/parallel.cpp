// The pool of csrc/cpu/parallel.cpp: a region waits for its threads and hands on what they throw, and a forked child has
// a pool of its own. Made so that a fault shows as a wrong result, whatever the threads' order; a race between them is
// for ThreadSanitizer (cross.py --thread-sanitize).
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "../../cuda/check/check.h"

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
}

// Forking is left out under ThreadSanitizer, which cannot follow it, and where an emulator may run this.
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
void check_fork() {}
#endif

const Op parallel_op("parallel", {check_waits, check_exceptions, check_fork});

}  // namespace
}  // namespace pydiff::check
