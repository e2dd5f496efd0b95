// Runs one kernel without Python, for sanitizers and debuggers: selftest KERNEL [PLANT [SEED]]
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "../block.h"
#include "kernels.h"

using namespace pydiff;

static selftest::Plant plant_named(const std::string& name) {
    for (size_t i = 0; i < std::size(selftest::plant_names); ++i)
        if (name == selftest::plant_names[i]) return selftest::Plant(i);
    std::fprintf(stderr, "no plant '%s'\n", name.c_str());
    std::exit(2);
}

int main(int count, char** words) {
    const std::string kernel = count > 1 ? words[1] : "";
    const selftest::Plant plant = plant_named(count > 2 ? words[2] : "none");
    simt::set_threads(1);  // so that a debugger's `next` stays in its block, and nothing is hidden from ThreadSanitizer
    simt::set_seed(count > 3 ? std::strtoull(words[3], nullptr, 10) : 0);
    std::vector<float> x(299, 1.0f), y(299), z(299);  // as long as the longest use: AddressSanitizer sees their ends
    std::vector<int> lanes(32, 1), rows(selftest::collective_rows * 32);
    try {
        if (kernel == "block_sum") selftest::block_sum(x.data(), y.data(), 150, plant);
        else if (kernel == "scale") selftest::scale(x.data(), y.data(), 299, 2.0f, plant);
        else if (kernel == "stage") selftest::stage(x.data(), y.data(), 150, plant);
        else if (kernel == "matmul_bf16") selftest::matmul_bf16(x.data(), y.data(), z.data(), 17, 9, 16, plant);
        else if (kernel == "matmul_tf32") selftest::matmul_tf32(x.data(), y.data(), z.data(), 17, 9, 16, plant);
        else if (kernel == "collectives") selftest::collectives(lanes.data(), rows.data(), plant);
        else return std::fprintf(stderr, "no kernel '%s'\n", kernel.c_str()), 2;
    } catch (const simt::Fault& error) {
        return std::fprintf(stderr, "%s\n", error.what()), 1;
    }
    std::printf("%s: %.9g %.9g %.9g\n", kernel.c_str(), double(y[0]), double(y[1]), double(y[2]));
}
