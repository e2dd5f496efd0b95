#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__ELF__) || !(defined(__x86_64__) || defined(__aarch64__))
#define PYDIFF_SIMT_UCONTEXT  // or by the compiler's command line, to try it
#endif
#if defined(PYDIFF_SIMT_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(PYDIFF_SIMT_RACE)
#include <sanitizer/tsan_interface.h>
#endif

// simt_switch(void** save, void* load): pushes the registers that the callee keeps, stores the stack pointer in *save,
// takes `load` as the new stack pointer and pops the same registers there.
// Sources: System V ABI AMD64, "Registers and the Stack Frame"; AAPCS64, "Machine Registers".
extern "C" void simt_switch(void** save, void* load);
#if defined(PYDIFF_SIMT_UCONTEXT)
#elif defined(__x86_64__)
asm(R"(
.text
.hidden simt_switch
.globl simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden simt_switch
.globl simt_switch
.type simt_switch, %function
simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size simt_switch, .-simt_switch
)");
#endif

namespace pydiff::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(PYDIFF_SIMT_RACE)
constexpr size_t stack_bytes = 512 << 10;  // instrumented frames are several times larger
#else
constexpr size_t stack_bytes = 128 << 10;
#endif

size_t guard_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

[[maybe_unused]] thread_local Fiber* left = nullptr;  // the fiber that the last switch came from

}  // namespace

Fiber::Fiber() {
#if defined(PYDIFF_SIMT_UCONTEXT)
    stack_pointer_ = new ucontext_t;
#endif
#if defined(PYDIFF_SIMT_RACE)
    sanitizer_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)()) : entry_(entry), stack_size_(stack_bytes) {
    void* memory = mmap(nullptr, guard_bytes() + stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard_bytes(), PROT_NONE);  // a kernel that overflows its stack stops there
    memory_ = static_cast<unsigned char*>(memory);
    stack_bottom_ = memory_ + guard_bytes();
#if defined(PYDIFF_SIMT_UCONTEXT)
    stack_pointer_ = new ucontext_t;
#endif
#if defined(PYDIFF_SIMT_RACE)
    sanitizer_ = __tsan_create_fiber(0);
#endif
    restart();
}

Fiber::~Fiber() {
#if defined(PYDIFF_SIMT_UCONTEXT)
    delete static_cast<ucontext_t*>(stack_pointer_);
#endif
    if (!memory_) return;
#if defined(PYDIFF_SIMT_RACE)
    __tsan_destroy_fiber(sanitizer_);
#endif
    munmap(memory_, guard_bytes() + stack_bytes);
}

void Fiber::restart() {
#if defined(__SANITIZE_ADDRESS__)
    // frames that were left behind
    __asan_unpoison_memory_region(memory_ + guard_bytes(), stack_bytes);
    sanitizer_ = nullptr;
#endif
    [[maybe_unused]] auto* top = reinterpret_cast<uintptr_t*>(memory_ + guard_bytes() + stack_bytes);
#if defined(PYDIFF_SIMT_UCONTEXT)
    auto* context = static_cast<ucontext_t*>(stack_pointer_);
    getcontext(context);
    context->uc_stack.ss_sp = memory_ + guard_bytes();
    context->uc_stack.ss_size = stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, entry_, 0);
#elif defined(__x86_64__)
    top -= 1;  // a return address of 0 ends a debugger's backtrace; entry() finds its stack as after a call
    top[0] = 0;
    *--top = reinterpret_cast<uintptr_t>(entry_);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack_pointer_ = top;
#elif defined(__aarch64__)
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = 0;
    top[11] = reinterpret_cast<uintptr_t>(entry_);  // x30, where ret goes
    stack_pointer_ = top;
#endif
}

void Fiber::switch_to(Fiber& other) {
#if defined(PYDIFF_SIMT_RACE)
    __tsan_switch_to_fiber(other.sanitizer_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    left = this;
    __sanitizer_start_switch_fiber(&sanitizer_, other.stack_bottom_, other.stack_size_);
#endif
#if defined(PYDIFF_SIMT_UCONTEXT)
    swapcontext(static_cast<ucontext_t*>(stack_pointer_), static_cast<ucontext_t*>(other.stack_pointer_));
#else
    simt_switch(&stack_pointer_, other.stack_pointer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(sanitizer_, &left->stack_bottom_, &left->stack_size_);
#endif
}

void Fiber::started() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &left->stack_bottom_, &left->stack_size_);
#endif
}

}  // namespace pydiff::simt
