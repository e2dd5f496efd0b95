// What every op's check uses: arrays on the device, the comparison with the equation in double, and random numbers.
// main.cpp says how the checks are run and judged. With PYDIFF_CPU the same checks are for the CPU's kernels.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(PYDIFF_CPU)
#include "../../cpu/kernels.h"
#include "../../cpu/parallel.h"
#else
#include "../kernels.h"
#endif

namespace pydiff::check {

using Numbers = std::vector<double>;

#if defined(PYDIFF_CPU)
using bfloat16 = float;         // the only type, also where a check says bfloat16
inline bool use_naive = false;  // only convolutions have two ways of working
#endif

// ---- memory --------------------------------------------------------------------------------------------------------

#if defined(PYDIFF_GPU)

constexpr bool on_cpu = false;
inline void require(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
inline void* allocate(size_t bytes) {
    void* p = nullptr;
    require(cudaMalloc(&p, bytes));
    return p;
}
inline void release(void* p) { cudaFree(p); }
inline void poison(void* p, size_t bytes) { require(cudaMemset(p, 0xFF, bytes)); }
inline void copy(void* to, const void* from, size_t bytes) { require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault)); }
inline void finish() {
    require(cudaGetLastError());
    require(cudaDeviceSynchronize());
}
inline void seed_threads(uint64_t) {}

#else

constexpr std::align_val_t aligned{256};
inline void* allocate(size_t bytes) { return ::operator new(bytes, aligned); }
inline void release(void* p) { ::operator delete(p, aligned); }
inline void copy(void* to, const void* from, size_t bytes) { if (bytes) std::memcpy(to, from, bytes); }
inline void finish() {}

#if defined(PYDIFF_CPU)
constexpr bool on_cpu = true;
inline void poison(void* p, size_t bytes) { std::memset(p, 0xFF, bytes); }
inline int many_threads = 3;
inline void seed_threads(uint64_t seed) { set_threads(seed % 2 ? many_threads : 1); }
#else
constexpr bool on_cpu = false;
inline void poison(void* p, size_t bytes) { std::memset(p, simt::poison, bytes); }
inline void seed_threads(uint64_t seed) { simt::set_seed(seed); }
#endif

#endif

template <class T>
T rounded(double x) { return T(x); }
template <class T>
double widened(T x) { return double(x); }
#if !defined(PYDIFF_CPU)
template <>
inline bfloat16 rounded<bfloat16>(double x) { return __float2bfloat16(float(x)); }
template <>
inline double widened<bfloat16>(bfloat16 x) { return __bfloat162float(x); }
#endif

// An array on the device, exactly as long as it says, `offset` elements beyond a multiple of 256 bytes; on the CPU, whose
// kernels ask for no more than an element's alignment, another one beyond.
template <class T>
class Array {
public:
    explicit Array(size_t count, size_t offset = 0)  // of NaN
        : count_(count), memory_(allocate((count + offset + on_cpu) * sizeof(T))),
          data_(static_cast<T*>(memory_) + offset + on_cpu) {
        poison(memory_, (count + offset + on_cpu) * sizeof(T));
    }
    explicit Array(Numbers& numbers, size_t offset = 0) : Array(numbers.size(), offset) {  // rounds the numbers, too
        std::vector<T> values;
        for (double& x : numbers) values.push_back(rounded<T>(x)), x = widened(values.back());
        copy(data_, values.data(), count_ * sizeof(T));
    }
    ~Array() { release(memory_); }
    Array(const Array&) = delete;

    operator T*() const { return data_; }
    Numbers read() const {
        std::vector<T> values(count_);
        copy(values.data(), data_, count_ * sizeof(T));
        Numbers numbers;
        for (T x : values) numbers.push_back(widened(x));
        return numbers;
    }

private:
    size_t count_;
    void* memory_;
    T* data_;
};

// Calls a launcher with what csrc/kernels.h calls ON_STREAM behind its arguments, and waits; the CPU's have nothing there.
template <class... Parameters, class... Arguments>
void launch(void (*launcher)(Parameters...), const Arguments&... arguments) {
#if defined(PYDIFF_CPU)
    launcher(arguments...);
#else
    launcher(arguments..., nullptr);
#endif
    finish();
}
// The same with IN_WORKSPACE, of this many bytes.
template <class... Parameters, class... Arguments>
void launch_in(size_t bytes, void (*launcher)(Parameters...), const Arguments&... arguments) {
#if defined(PYDIFF_CPU)
    (void)bytes;
    launch(launcher, arguments...);
#else
    const Array<unsigned char> workspace(bytes);
    launch(launcher, arguments..., workspace);
#endif
}

// ---- judging -------------------------------------------------------------------------------------------------------

// The checks of one op: a file of this directory defines one, and main.cpp runs those that are linked in.
struct Op {
    Op(const char* name, std::vector<void (*)()> list) : name(name) {
        for (const auto check : list)  // where bfloat16 is float, two are one
            if (checks.empty() || check != checks.back()) checks.push_back(check);
        all().push_back(this);
    }
    static std::vector<const Op*>& all() {
        static std::vector<const Op*> ops;
        return ops;
    }
    const char* const name;
    std::vector<void (*)()> checks;
};

inline int failures = 0;
inline std::map<std::string, double> errors;  // the largest of every kernel's, relative to its largest result
inline uint64_t first_seed = 0;

inline void fail(const std::string& what) {
    if (++failures <= 20) std::fprintf(stderr, "%s\n", what.c_str());
}

inline void compare(const std::string& what, const Numbers& got, const Numbers& expected, double tolerance) {
    double largest = 1.0;
    for (double x : expected) largest = std::max(largest, std::fabs(x));
    double& error = errors[what.substr(0, what.find(' '))];
    for (size_t i = 0; i < expected.size(); ++i) error = std::max(error, std::fabs(got[i] - expected[i]) / largest);
    for (size_t i = 0; i < expected.size(); ++i)
        if (!(std::fabs(got[i] - expected[i]) <= tolerance * largest))  // NaN fails as well
            return fail(what + "[" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", expected " +
                        std::to_string(expected[i]));
}

// What a kernel that rounds its inputs and outputs to T may be off by, relative to the largest result.
template <class T>
constexpr double tolerance = sizeof(T) == 2 ? 1.5e-2 : 5e-5;

// run() launches once, with its own outputs, and returns their contents.
inline void judge(const std::string& what, const std::vector<Numbers>& expected, double tolerance,
           const std::function<std::vector<Numbers>()>& run) {
    use_naive = true;
    seed_threads(first_seed);
    const std::vector<Numbers> naive = run();
    use_naive = false;
    const std::vector<Numbers> fast = run();
    seed_threads(first_seed + 1);  // odd and even: asynchronous copies land early and late
    const std::vector<Numbers> again = run();
    for (size_t i = 0; i < expected.size(); ++i) {
        const std::string output = what + ", output " + std::to_string(i);
        compare(output + " of the naive kernel", naive[i], expected[i], tolerance);
        compare(output, fast[i], expected[i], tolerance);
        if (!fast[i].empty() && std::memcmp(fast[i].data(), again[i].data(), fast[i].size() * sizeof(double)))
            fail(output + ": two runs differ in their bits");
    }
}

inline std::string name(const char* op, size_t bytes, std::initializer_list<int64_t> sizes) {
    std::string text = std::string(op) + (bytes == 2 ? " bfloat16" : " float");
    for (int64_t size : sizes) text += " " + std::to_string(size);
    return text;
}

// `count` numbers in (-1, 1): splitmix64 (Steele, Lea and Flood 2014).
inline Numbers random_numbers(size_t count, uint64_t seed) {
    Numbers numbers;
    for (uint64_t state = seed << 32; count--;) {
        uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        numbers.push_back(double((z ^ z >> 31) >> 11) * 0x1p-52 - 1.0);
    }
    return numbers;
}

}  // namespace pydiff::check
