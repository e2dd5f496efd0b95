#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "../threads.h"

namespace pydiff {
namespace {

// Waits for ready() in a loop, up to 200 us: true if it came true. Waking a sleeping thread costs 50 to 200 us on a
// virtual machine, as much as a whole region, and a training step enters some 200 regions a few microseconds apart.
// Giving the core up between looks leaves it to NumPy's threads when they have work.
template <class F>
bool spin(F ready) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }
        std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// A std::bad_alloc, which is Python's MemoryError, that says what there was too little of.
class TooManyThreads : public std::bad_alloc {
public:
    explicit TooManyThreads(std::string text) : text_(std::make_shared<std::string>(std::move(text))) {}
    const char* what() const noexcept override { return text_->c_str(); }

private:
    std::shared_ptr<std::string> text_;  // shared: an exception's copies must not throw
};

thread_local bool inside_region = false;

// The chunks of a region are divided into shares of consecutive ones, one for each thread of the pool, present or not.
// A thread starts with its own, the same in every region: what it reads is then likely what it wrote in the region
// before, and still in its core's cache. A thread that has finished its own share continues with the others'.
struct alignas(64) Share {  // a cache line each
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

// What the threads of one region share. Lives on the caller's stack: the caller leaves only when no worker is in it.
struct Region {
    const RangeBody* body;
    int64_t count, grain;
    std::vector<Share>* shares = nullptr;
    std::atomic<bool> failed{false};
    std::exception_ptr error;  // written by the thread that sets `failed` first; read when all have left

    int64_t chunks() const { return (count + grain - 1) / grain; }

    void begin(std::vector<Share>& all) {
        shares = &all;
        const int64_t n = static_cast<int64_t>(all.size()), each = chunks() / n, left = chunks() % n;
        int64_t next = 0;
        for (int64_t i = 0; i < n; ++i) {
            all[i].next.store(next, std::memory_order_relaxed);
            all[i].end = next += each + (i < left);
        }
    }

    void work(size_t thread) {
        inside_region = true;
        const size_t n = shares->size();
        for (size_t i = 0; i < n && !failed.load(std::memory_order_relaxed); ++i) work_on((*shares)[(thread + i) % n]);
        inside_region = false;
    }

private:
    void work_on(Share& share) {
        while (share.next.load(std::memory_order_relaxed) < share.end) {
            const int64_t chunk = share.next.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= share.end || failed.load(std::memory_order_relaxed)) return;
            try {
                (*body)(chunk * grain, std::min((chunk + 1) * grain, count));
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
    }
};

// Where workers are. Left alone, Linux may put two threads on one processor while another has nothing to do, and moves
// one of them only milliseconds later: several times as long as a region. So the caller sends every sleeper that it
// wakes, every newcomer, and whoever was last seen where another is, to a processor that neither itself nor another
// worker is on; once it has worked there, it may go anywhere again.
class Placement {
#ifdef __linux__
public:
    void begin(pthread_t thread) { thread_ = thread; }  // by the thread that started the worker
    void here() { processor_ = sched_getcpu(); }        // by the worker: where it is, and where it likely stays
    int processor() const { return processor_; }        // -1: it has not worked yet
    // By the caller: binds the worker to the first processor not in `taken`, and adds that.
    void send(cpu_set_t& taken) {
        if (moved_ || pthread_getaffinity_np(thread_, sizeof allowed_, &allowed_) != 0) return;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed_) || CPU_ISSET(cpu, &taken)) continue;
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            CPU_SET(cpu, &taken);
            moved_ = pthread_setaffinity_np(thread_, sizeof one, &one) == 0;
            return;
        }
    }
    void release() {                                    // by the worker: as it was before
        if (moved_) pthread_setaffinity_np(thread_, sizeof allowed_, &allowed_);
        moved_ = false;
    }

private:
    pthread_t thread_{};
    int processor_ = -1;
    bool moved_ = false;
    cpu_set_t allowed_;
#else
public:
    void begin(pthread_t) {}
    void here() {}
    void release() {}
#endif
};

// A region offers one seat for each worker that could help. Workers sit down, claim chunks until none are left, and
// stand up. All of it changes under the mutex; seats_ and seated_ are atomic only so that spinning can look without it.
class Pool {
public:
    explicit Pool(int threads) : shares_(static_cast<size_t>(threads)), workers_(static_cast<size_t>(threads - 1)) {
#ifdef __linux__
        cpu_set_t allowed;
        crowded_ = sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) < threads;
#endif
        try {
            for (size_t i = 0; i < workers_.size(); ++i) {
                workers_[i].thread = std::thread([this, i] { serve(workers_[i], i + 1); });
                workers_[i].place.begin(workers_[i].thread.native_handle());
            }
        } catch (const std::system_error& error) {
            size_t started = 1;
            for (const Worker& worker : workers_) started += worker.thread.joinable();
            stop();
            throw TooManyThreads("the system allows only " + std::to_string(started) + " of " +
                                 std::to_string(threads) + " threads (" + error.what() +
                                 "); set PYDIFF_THREADS to that number or less");
        } catch (...) {  // no memory: threads that have started must not outlive this
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }

    void run(Region& region, double nanoseconds) {
        int helpers = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(workers_.size()), region.chunks() - 1));
        region.begin(shares_);
        int sleepers = 0;  // to be woken
        {
            std::lock_guard<std::mutex> lock(mutex_);
            const int awake = static_cast<int>(workers_.size()) - asleep();
            if (helpers > awake && worth_waking(nanoseconds)) sleepers = helpers - awake;
            place(sleepers > 0);
            helpers = std::min(helpers, awake + sleepers);
            region_ = &region;
            seats_ = helpers;
        }
        for (int i = 0; i < sleepers; ++i) wake_.notify_one();
        region.work(0);
        // Only workers that sat down are waited for: one that the system has not woken yet costs nothing.
        std::unique_lock<std::mutex> lock(mutex_);
        seats_ = 0;
        region_ = nullptr;
        if (seated_ > 0) {
            lock.unlock();
            spin([this] { return seated_.load(std::memory_order_relaxed) == 0; });
            lock.lock();
        }
        left_.wait(lock, [this] { return seated_ == 0; });
    }

private:
    struct Worker {
        std::thread thread;
        Placement place;
        bool asleep = false, to_move = false;
    };

    void serve(Worker& worker, size_t thread) {
        for (;;) {
            const bool offered = spin([this] { return seats_.load(std::memory_order_relaxed) > 0; });
            std::unique_lock<std::mutex> lock(mutex_);
            if (!offered) {
                worker.place.release();  // it may have been sent somewhere and not been needed
                worker.asleep = true;
                // Once, not until there is a seat: who wakes up too late for a region stays awake for the next.
                if (!stopping_ && seats_ == 0) wake_.wait(lock);
                worker.asleep = false;
                worker.place.release();
            }
            if (stopping_) return;
            if (seats_ == 0) continue;  // others were quicker
            Region* region = region_;
            --seats_;
            ++seated_;
            lock.unlock();
            region->work(thread);
            lock.lock();
            worker.place.here();
            worker.place.release();
            if (--seated_ == 0) left_.notify_one();
        }
    }
    // All three under the mutex, so that no thread falls asleep or wakes up meanwhile.
    int asleep() const {
        return static_cast<int>(
            std::count_if(workers_.begin(), workers_.end(), [](const Worker& w) { return w.asleep; }));
    }
    // Whether to wake threads for a region of this length. A short one is over before they come. Many short ones in a
    // row are worth it: those that had to do without add up.
    bool worth_waking(double nanoseconds) {
        constexpr double one_region = 100e3, short_ones = 250e3;
        short_work_ += nanoseconds;
        if (nanoseconds < one_region && short_work_ < short_ones) return false;
        short_work_ = 0;
        return true;
    }
    void place(bool sleepers) {
#ifdef __linux__
        if (crowded_) return;
        cpu_set_t taken;
        CPU_ZERO(&taken);
        CPU_SET(sched_getcpu(), &taken);
        for (Worker& w : workers_) {
            const int processor = w.place.processor();
            w.to_move = w.asleep ? sleepers : processor < 0 || CPU_ISSET(processor, &taken);
            if (!w.asleep && processor >= 0) CPU_SET(processor, &taken);
        }
        for (Worker& w : workers_)
            if (w.to_move) w.place.send(taken);
#else
        (void)sleepers;
#endif
    }
    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (Worker& worker : workers_)
            if (worker.thread.joinable()) worker.thread.join();
    }

    std::mutex mutex_;
    std::condition_variable wake_, left_;
    std::vector<Share> shares_;    // of the region that runs; the first is the caller's
    std::vector<Worker> workers_;  // never resized: each thread keeps a reference to its own
    Region* region_ = nullptr;
    std::atomic<int> seats_{0}, seated_{0};
    double short_work_ = 0;  // nanoseconds
    bool crowded_ = false;   // more threads than processors
    bool stopping_ = false;
};

struct State {
    std::mutex region;            // held by the Python thread whose region the pool runs
    std::atomic<int> threads{0};  // 0: not decided yet
    Pool* pool = nullptr;
};
// Never freed: workers may still look at it while the process exits.
std::atomic<State*> state_pointer{nullptr};

// A forked child has none of its parent's threads, and the mutexes may be locked by one of them: it starts afresh and
// leaks the old state on purpose.
void forget_in_child() {
    State* fresh = new State;
    fresh->threads = state_pointer.load()->threads.load();
    state_pointer.store(fresh);
    inside_region = false;
}

State& state() {
    static std::once_flag once;
    std::call_once(once, [] {
        state_pointer.store(new State);
        pthread_atfork(nullptr, nullptr, forget_in_child);
    });
    return *state_pointer.load();
}

}  // namespace

void parallel_chunks(int64_t count, int64_t grain, const RangeBody& body, double nanoseconds) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    if (!inside_region && count > grain && threads() > 1) {
        State& s = state();
        std::unique_lock<std::mutex> lock(s.region, std::try_to_lock);
        if (lock.owns_lock() && s.threads > 1) {
            if (!s.pool) s.pool = new Pool(s.threads);
            Region region{&body, count, grain, {}, {}, {}};
            s.pool->run(region, nanoseconds);
            if (region.failed) std::rethrow_exception(region.error);
            return;
        }
    }
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count));
}

int64_t next_preparation() {
    static std::atomic<int64_t> last{0};
    return ++last;
}

int64_t& prepared_by_thread() {
    thread_local int64_t region = 0;
    return region;
}

int threads() {
    State& s = state();
    if (s.threads == 0) {
        int undecided = 0;
        s.threads.compare_exchange_strong(undecided, default_threads());  // a set_threads in between wins
    }
    return s.threads;
}

void set_threads(int n) {
    if (n < 1 || n > most_threads)
        throw std::invalid_argument("threads must be from 1 to " + std::to_string(most_threads) + ", got " +
                                    std::to_string(n));
    State& s = state();
    std::lock_guard<std::mutex> lock(s.region);
    if (n == s.threads) return;
    delete s.pool;
    s.pool = nullptr;
    s.threads = n;
}

namespace {

struct Buffers {
    void* data[scratch_slots] = {};
    size_t size[scratch_slots] = {};
    ~Buffers() { release(); }
    void release() {
        for (int slot = 0; slot < scratch_slots; ++slot) {
            std::free(data[slot]);
            data[slot] = nullptr;
            size[slot] = 0;
        }
    }
};

Buffers& buffers_of_thread() {
    thread_local Buffers buffers;
    return buffers;
}

}  // namespace

void release_scratch() { buffers_of_thread().release(); }

float* scratch(int slot, size_t count) {
    Buffers& buffers = buffers_of_thread();
    if (buffers.size[slot] < count || !buffers.data[slot]) {
        std::free(buffers.data[slot]);
        buffers.data[slot] = nullptr;
        buffers.size[slot] = 0;
        const size_t bytes = (std::max<size_t>(count, 1) * sizeof(float) + 63) / 64 * 64;
        buffers.data[slot] = std::aligned_alloc(64, bytes);
        if (!buffers.data[slot]) throw std::bad_alloc();
        buffers.size[slot] = count;
    }
    return static_cast<float*>(buffers.data[slot]);
}

}  // namespace pydiff
