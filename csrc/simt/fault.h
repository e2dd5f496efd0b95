// What the emulator says when a kernel breaks a rule of CUDA: one sentence with the kernel, block, thread and line.
#pragma once
#include <stdexcept>
#include <string>

namespace pydiff::simt {

// A line of a kernel's source. `Site site = Site::here()` as the last parameter is the line of the caller.
struct Site {
    const char* file = "";
    int line = 0;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
    bool operator==(const Site& other) const;
    std::string text() const;  // "block_sum.cu:31"
};

// Becomes pydiff._simt.Fault in Python.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws Fault: "kernel block_sum, block (0, 0, 0), thread (5, 0, 0), block_sum.cu:31: <message>".
[[noreturn]] void fault(Site site, const std::string& message);

}  // namespace pydiff::simt
