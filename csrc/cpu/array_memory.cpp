#include "array_memory.h"

#include <stdexcept>
#include <vector>

#include "arena.h"

namespace py = pybind11;

namespace pydiff {
namespace {

// From numpy/ndarraytypes.h. Copied, like the number below, so that building pydiff does not need NumPy: as part of the
// binary interface that every compiled extension relies on, they stay what they are.
struct Handler {
    char name[127];
    uint8_t version;
    struct {
        void* context;
        void* (*malloc)(void*, size_t bytes);
        void* (*calloc)(void*, size_t count, size_t size);
        void* (*realloc)(void*, void* memory, size_t bytes);
        void (*free)(void*, void* memory, size_t bytes);  // bytes: not those requested, if it is empty
    } allocator;
};
constexpr int set_handler_at = 304;  // of PyDataMem_SetHandler in the table of NumPy's functions, since NumPy 1.22

Handler arena_handler = {
    "pydiff arena",
    1,
    {
        nullptr,
        [](void*, size_t bytes) { return arena_allocate(bytes); },
        [](void*, size_t count, size_t size) { return arena_zeroed(count, size); },
        [](void*, void* memory, size_t bytes) { return arena_resize(memory, bytes); },
        [](void*, void* memory, size_t) { arena_free(memory); },
    },
};

// Makes this the handler of the current context; returns the one before.
py::object set_handler(const py::object& capsule) {
    using SetHandler = PyObject* (*)(PyObject*);
    static const SetHandler set = [] {
        const py::capsule table = py::module_::import("numpy._core.multiarray").attr("_ARRAY_API");
        return reinterpret_cast<SetHandler>(table.get_pointer<void*>()[set_handler_at]);
    }();
    PyObject* before = set(capsule.ptr());
    if (!before) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(before);
}

py::object arena_capsule() {
    static PyObject* const capsule = PyCapsule_New(&arena_handler, "mem_handler", nullptr);  // the name that NumPy expects
    return py::reinterpret_borrow<py::object>(capsule);
}

class Scope {
public:
    void enter() { before_.push_back(set_handler(arena_capsule())); }
    void exit(const py::args&) {
        if (before_.empty()) throw std::runtime_error("the arena was not entered");
        const py::object before = before_.back();
        before_.pop_back();
        set_handler(before);
    }

private:
    std::vector<py::object> before_;  // several if it is entered again inside
};

py::dict counters() {
    const ArenaCounters c = arena_counters();
    using namespace py::literals;
    return py::dict("blocks"_a = c.blocks, "in_use"_a = c.in_use, "peak"_a = c.peak, "touched"_a = c.touched,
                    "reserved"_a = c.reserved, "chunks"_a = c.chunks, "system_calls"_a = c.system_calls);
}

}  // namespace

void bind_array_memory(py::module_& m) {
    py::class_<Scope>(m, "Arena", "Inside of `with Arena():` NumPy's arrays come from the arena; see csrc/cpu/arena.h.")
        .def(py::init<>())
        .def("__enter__", &Scope::enter)
        .def("__exit__", &Scope::exit);
    m.def("arena_counters", &counters);
    m.def("arena_trim", &arena_trim);
    m.def("arena_check", &arena_check);
}

}  // namespace pydiff
