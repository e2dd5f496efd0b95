// A fiber: a separate stack, entered and left by hand. One fiber plays one CUDA thread.
//
// switch_to() saves the registers that a called function must keep, and loads the other fiber's: about the cost of a
// function call, and no system call. x86-64 (System V) and aarch64 (AAPCS64) have it in assembly; others use ucontext.
#pragma once
#include <cstddef>

namespace pydiff::simt {

class Fiber {
public:
    // The fiber of the code that is running now, so that others can switch back to it.
    Fiber();
    // Runs entry() on its own stack when first switched to; entry must never return. Throws std::bad_alloc.
    explicit Fiber(void (*entry)());
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    void restart();               // forgets what the fiber was doing: the next switch starts at entry()
    void switch_to(Fiber& other); // called on the fiber that is running now; returns when someone switches back
    static void started();        // the first thing entry() calls: tells the sanitizers that the switch is over

private:
    void (*entry_)() = nullptr;
    unsigned char* memory_ = nullptr;  // guard page, then the stack
    void* stack_pointer_ = nullptr;    // while not running; the ucontext_t in the portable version
    void* sanitizer_ = nullptr;        // TSan's fiber, or ASan's fake stack
    const void* stack_bottom_ = nullptr;
    size_t stack_size_ = 0;
};

}  // namespace pydiff::simt
