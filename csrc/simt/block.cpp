#include "block.h"

#include <algorithm>
#include <cstdio>
#include <map>

#if defined(PYDIFF_SIMT_RACE)
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_acquire(address) ((void)(address))
#define __tsan_release(address) ((void)(address))
#endif

namespace pydiff::simt {

thread_local Thread* current = nullptr;
thread_local Counters counters;

namespace {

char launch_sync;  // the race build: blocks run one after another, as launches of a stream do

void make_ready(Thread& thread) {
    thread.waits_for = nullptr;
    thread.block->ready.push_back(&thread);
}

// Gives the CPU to the scheduler until someone calls make_ready.
void suspend(Thread& me) {
    ++counters.switches;
    me.fiber->switch_to(me.block->scheduler);
}

void open_barrier_if_complete(Block& block) {
    if (block.at_barrier == 0 || block.at_barrier < block.alive) return;
    block.at_barrier = 0;
    block.last_barrier = block.barrier_site;
    ++block.barrier_generation;
    ++counters.barriers;
    block.check_shared();
    for (int i = 0; i < block.count; ++i) {
        Thread& thread = *block.threads[i];
        if (!thread.done && thread.waits_for) make_ready(thread);
    }
}

// Lanes that have ended are not waited for.
void open_rendezvous_if_complete(Block& block, int warp, Rendezvous& meeting) {
    if (!meeting.arrived || (meeting.mask & block.warps[warp].alive & ~meeting.arrived)) return;
    const uint32_t lanes = meeting.arrived;
    meeting.arrived = 0;
    ++meeting.generation;
    ++counters.collectives;
    if (meeting.compute) meeting.compute(meeting.operands.data(), lanes);
    for (int lane = 0; lane < warp_size; ++lane)
        if (lanes >> lane & 1) make_ready(*block.threads[warp * warp_size + lane]);
}

void end_thread(Thread& me) {
    check_copies_done(me);
    me.done = true;
    --me.block->alive;
    Warp& warp = me.block->warps[me.warp];
    warp.alive &= ~(1u << me.lane);
    open_barrier_if_complete(*me.block);
    for (Rendezvous& meeting : warp.meetings) open_rendezvous_if_complete(*me.block, me.warp, meeting);
}

// What a fiber runs. An exception must not leave it: the block keeps the first and stops.
void thread_main() {
    Fiber::started();
    Thread& me = *current;
    __tsan_acquire(&launch_sync);
    try {
        me.block->run_call(me.block->call);
        end_thread(me);
    } catch (...) {
        me.block->error = std::current_exception();
    }
    __tsan_release(&launch_sync);
    for (;;) suspend(me);
}

// ", 16 wait in __syncwarp at warp.cu:12" for every such place.
std::string waiting_places(const Block& block) {
    std::map<std::string, int> places;
    for (int i = 0; i < block.count; ++i) {
        const Thread& thread = *block.threads[i];
        if (!thread.done && thread.waits_for) ++places[std::string(thread.waits_for) + " at " + thread.site.text()];
    }
    std::string text;
    for (const auto& [place, number] : places) text += ", " + std::to_string(number) + " wait in " + place;
    return text;
}

[[noreturn]] void report_deadlock(Block& block) {
    const auto waits = [](const auto& thread) { return !thread->done; };
    current = std::find_if(block.threads.begin(), block.threads.end(), waits)->get();  // for the message
    fault(current->site, "deadlock: no thread can go on" + waiting_places(block));
}

}  // namespace

std::string triple(unsigned x, unsigned y, unsigned z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

bool Site::operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::string(file) == other.file);
}

std::string Site::text() const {
    const std::string path = file;
    return path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);  // rfind's npos + 1 is 0
}

void fault(Site site, const std::string& message) {
    std::string text;
    if (current) {
        const Block& block = *current->block;
        text = std::string("kernel ") + block.kernel + ", block " +
               triple(block.index.x, block.index.y, block.index.z) + ", thread " +
               triple(current->index.x, current->index.y, current->index.z) + ", ";
    }
    throw Fault(text + site.text() + ": " + message);
}

Thread& running() {
    if (!current) fault({}, "a device function was called outside a kernel");
    return *current;
}

void where() {
    const Block& block = *running().block;
    std::printf("block (%u, %u, %u): %d threads ended, %zu ready, 1 runs%s\n", block.index.x, block.index.y,
                block.index.z, block.count - block.alive, block.ready.size(), waiting_places(block).c_str());
    std::fflush(stdout);
}

Block::Block() : shared(max_shared_bytes + (64 << 10)) {}

void Block::check_shared() const {
    const std::string damage = shared.damage();
    if (!damage.empty()) fault(current->site, "shared memory was overrun before this line: " + damage);
}

void Block::run(uint3 block_index, size_t dynamic_shared_bytes) {
    index = block_index;
    count = alive = int(dim.x * dim.y * dim.z);
    at_barrier = 0, last_barrier = {}, error = nullptr;
    ready.clear();
    warps.assign((count + warp_size - 1) / warp_size, Warp());
    shared.reset();
    static_bytes = 0, dynamic_bytes = dynamic_shared_bytes;
    dynamic = shared.allocate(dynamic_bytes, 16, "dynamic shared memory", {kernel, 0});
    while (int(threads.size()) < count) {
        threads.push_back(std::make_unique<Thread>());
        threads.back()->fiber = std::make_unique<Fiber>(thread_main);
    }
    for (int rank = 0; rank < count; ++rank) {
        Thread& thread = *threads[rank];
        const unsigned r = unsigned(rank);
        thread.block = this;
        thread.index = {r % dim.x, r / dim.x % dim.y, r / dim.x / dim.y};
        thread.rank = rank, thread.lane = rank % warp_size, thread.warp = rank / warp_size;
        thread.done = false, thread.site = {}, thread.groups = 0;
        thread.copies.clear();
        thread.fiber->restart();
        warps[thread.warp].alive |= 1u << thread.lane;
        make_ready(thread);
    }
    __tsan_release(&launch_sync);
    while (alive && !error) {
        if (ready.empty()) report_deadlock(*this);
        std::swap(ready[order.below(ready.size())], ready.back());
        current = ready.back();
        ready.pop_back();
        scheduler.switch_to(*current->fiber);
    }
    __tsan_acquire(&launch_sync);
    if (error) std::rethrow_exception(error);
    check_shared();
    current = nullptr;
}

void barrier(Site site) {
    Thread& me = running();
    Block& block = *me.block;
    if (block.at_barrier == 0) block.barrier_site = site;
    if (!(site == block.barrier_site))
        fault(site, "divergent barrier: __syncthreads here, while " + std::to_string(block.at_barrier) +
                        " threads of the block wait in the one at " + block.barrier_site.text());
    me.site = site, me.waits_for = "__syncthreads";
    ++block.at_barrier;
    land_some_copies(me);
    char* sync = &block.barrier_sync[block.barrier_generation & 1];
    __tsan_release(sync);
    open_barrier_if_complete(block);
    suspend(me);
    __tsan_acquire(sync);
}

void meet(const char* name, uint32_t mask, void* operand, Compute compute, bool orders_memory, Site site) {
    Thread& me = running();
    if (!(mask >> me.lane & 1))
        fault(site, std::string(name) + ": lane " + std::to_string(me.lane) + " is not in its own mask");
    std::deque<Rendezvous>& meetings = me.block->warps[me.warp].meetings;
    auto found = std::find_if(meetings.begin(), meetings.end(), [&](const auto& other) { return other.mask == mask; });
    if (found == meetings.end()) {
        meetings.emplace_back();
        found = meetings.end() - 1;
    }
    Rendezvous& meeting = *found;
    if (meeting.arrived && (!(meeting.site == site) || meeting.compute != compute))
        fault(site, std::string("divergent warp: ") + name + " here, while lanes of the same mask wait in " +
                        meeting.name + " at " + meeting.site.text());
    meeting.mask = mask, meeting.compute = compute, meeting.name = name, meeting.site = site;
    meeting.arrived |= 1u << me.lane;
    meeting.operands[me.lane] = operand;
    me.site = site, me.waits_for = name;
    land_some_copies(me);
    [[maybe_unused]] char* sync = &meeting.sync[meeting.generation & 1];
    if (orders_memory) __tsan_release(sync);
    open_rendezvous_if_complete(*me.block, me.warp, meeting);
    suspend(me);
    if (orders_memory) __tsan_acquire(sync);
}

}  // namespace pydiff::simt
