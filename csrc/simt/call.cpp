// pydiff._simt: calls of the CUDA kernels with NumPy arrays. What a kernel sees are copies in guarded memory, aligned
// as cudaMalloc aligns, or as views are; outputs start as NaN and are copied back, so what was not written is seen.
#include <cstring>

#include "../bindings/numpy.h"
#include "guarded.h"

namespace py = pybind11;

namespace pydiff {

using simt::Fault;
using simt::GuardedMemory;

struct Call::World {
    struct Output {
        void* to;
        const void* from;
        size_t bytes;
    };
    std::vector<std::unique_ptr<GuardedMemory>> memory;  // one an array: how many there will be is not known before
    std::vector<Output> outputs;

    void* allocate(size_t bytes, const char* name) {
        memory.push_back(std::make_unique<GuardedMemory>(bytes + 4 * 256 + 2 * simt::gap_bytes));
        return memory.back()->allocate(bytes, 256, name, {name, 0});
    }
};

Call::Call() : world_(new World) {}
Call::~Call() = default;
Found Call::find(const py::object& object, const char* name) { return find_numpy(object, name); }

void* Call::admit(const Argument& a, const char* name, Use use) {
    const auto bytes = static_cast<size_t>(a.span() * bytes_of[int(a.type)]);
    // A view that starts within 16 bytes of its array does so here too: NumPy's own arrays are aligned to that.
    const size_t shift = bytes ? reinterpret_cast<uintptr_t>(a.data) % 16 : 0;
    void* copy = static_cast<unsigned char*>(world_->allocate(bytes + shift, name)) + shift;
    if (use != Use::out && bytes) std::memcpy(copy, a.data, bytes);
    if (use != Use::in && bytes) world_->outputs.push_back({a.data, copy, bytes});
    return copy;
}

void* Call::workspace(size_t bytes) { return bytes ? world_->allocate(bytes, "workspace") : nullptr; }

cudaStream_t Call::stream() const { return nullptr; }

void Call::finish() {
    for (const auto& memory : world_->memory) {
        const std::string damage = memory->damage();
        if (!damage.empty()) throw Fault("global memory was overrun: " + damage);
    }
    for (const auto& output : world_->outputs) std::memcpy(output.to, output.from, output.bytes);
}

}  // namespace pydiff
