// Every launcher of kernels.h on small awkward shapes, without Python: for sanitizers, under the emulator and on GPUs.
//
//     check [OP [SEED]]              all ops without a name, or with an empty one; seed of the threads' order
//     check [OP [SEED [THREADS]]]    the CPU's: so many threads, while another one changes their number all the time
//
// Each case runs the naive kernel once and the fast one twice. Both must agree with the equation in double, and the two
// fast runs in every bit; under the emulator their threads run in different orders. What a kernel writes starts as NaN,
// and arrays are exactly as long as they must be. The shapes suit a race build, where a switch of threads takes 30
// microseconds; precision is for the Python tests.
//
// Built by csrc/simt/sanitize.py (race, address, debug), and for a GPU by what gate.py --check-program prints. With
// PYDIFF_CPU, built by csrc/cpu/cross.py, the kernels are those of csrc/cpu: the naive run is one without Winograd's
// algorithm, and of the two fast ones the second has three threads (or THREADS).
// Exit status: 0 right and silent, 1 wrong, 2 no such op; another one is a sanitizer's.
#include <cstdio>
#include <cstdlib>

#include "check.h"

#if defined(PYDIFF_CPU)
#include <atomic>
#include <chrono>
#include <thread>
#endif

using namespace pydiff::check;

namespace {

#if defined(PYDIFF_CPU)
// Calls set_threads with other numbers, up to `most`, for as long as it lives: pools end and begin between regions.
class Restless {
public:
    explicit Restless(int most) : thread_([this, most] {
        for (int i = 0; !over_; ++i) {
            pydiff::set_threads(1 + i % most);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    }) {}
    ~Restless() {
        over_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> over_{false};
    std::thread thread_;
};
#endif

}  // namespace

int main(int count, char** words) {
    const std::string wanted = count > 1 ? words[1] : "";
    first_seed = count > 2 ? std::strtoull(words[2], nullptr, 10) : 0;
#if !defined(__CUDACC__) && !defined(PYDIFF_GPU) && !defined(PYDIFF_CPU)
    pydiff::simt::set_threads(1);  // nothing is hidden from ThreadSanitizer
#endif
#if defined(PYDIFF_CPU)
    std::unique_ptr<Restless> restless;
    if (count > 3) {
        many_threads = std::atoi(words[3]);
        restless = std::make_unique<Restless>(many_threads);
    }
#endif
    bool found = false;
    for (const Op* op : Op::all()) {
        if (!wanted.empty() && wanted != op->name) continue;
        found = true;
        const int before = failures;
        errors.clear();
        for (const auto& check : op->checks) {
            try {
                check();
            } catch (const std::exception& error) {  // a fault of the emulator, an error of CUDA
                fail(std::string(op->name) + ": " + error.what());
            }
        }
        std::printf("%s: %s\n", op->name, failures == before ? "right" : "wrong");
        if (on_cpu)
            for (const auto& [kernel, error] : errors) std::printf("    %-50s %8.1e\n", kernel.c_str(), error);
        std::fflush(stdout);
    }
    if (!found) return std::fprintf(stderr, "no op '%s'\n", wanted.c_str()), 2;
    return failures ? 1 : 0;
}
