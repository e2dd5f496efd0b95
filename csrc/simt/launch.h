// launch<kernel>(...) for the emulator: runs the kernel at once, and returns when it is done.
#pragma once
#include <string>
#include <tuple>

#include "block.h"

using cudaStream_t = struct CUstream_st*;  // always null: there is one CPU thread and one order

namespace pydiff {
namespace simt {

// "scale" out of the compiler's description of kernel_name<&pydiff::scale<true>>().
template <auto kernel>
const char* kernel_name() {
    static const std::string name = [](std::string text) {
        text = text.substr(text.find("kernel = ") + 9);
        text = text.substr(0, text.find_first_of("<(];"));
        const size_t colon = text.rfind(':');
        return text.substr(colon == std::string::npos ? 0 : colon + 1);
    }(__PRETTY_FUNCTION__);
    return name.c_str();
}

}  // namespace simt

// Throws simt::Fault; the arrays that the kernel was writing are then half written.
template <auto kernel, class... Args>
void launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, Args... args) {
    std::tuple<Args...> call(args...);
    simt::run_grid(simt::kernel_name<kernel>(), grid, block, shared_bytes, &call,
                   [](void* call) { std::apply(kernel, *static_cast<std::tuple<Args...>*>(call)); });
}

}  // namespace pydiff
