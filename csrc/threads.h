// How many threads the kernels for the CPU, and the emulator of CUDA kernels, use unless told otherwise.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace pydiff {

constexpr int most_threads = 1024;

#ifdef __linux__
// Whole processors that a container's CPU quota allows (docker --cpus); most_threads without a quota.
inline int quota() {
    long long microseconds = 0, period = 0;
    if (std::unique_ptr<FILE, int (*)(FILE*)> file{std::fopen("/sys/fs/cgroup/cpu.max", "r"), std::fclose})
        if (std::fscanf(file.get(), "%lld %lld", &microseconds, &period) == 2 && period > 0)  // "max 100000" gives 0
            return static_cast<int>(std::min<long long>(std::max(1LL, microseconds / period), most_threads));
    return most_threads;
}
#endif

inline int default_threads() {
    if (const char* text = std::getenv("PYDIFF_THREADS"); text && *text) {
        char* end = nullptr;
        const long n = std::strtol(text, &end, 10);
        if (end == text || *end != '\0' || n < 1 || n > most_threads)
            throw std::invalid_argument("PYDIFF_THREADS must be a whole number from 1 to " +
                                        std::to_string(most_threads) + ", got '" + text + "'");
        return static_cast<int>(n);
    }
#ifdef __linux__
    cpu_set_t set;  // respects taskset and container CPU sets, which hardware_concurrency may not
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, std::min(CPU_COUNT(&set), quota()));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace pydiff
