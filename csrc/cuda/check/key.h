// The noise of a key, made again in another way, for the ops that draw some.
#pragma once
#include <array>

#include "check.h"

namespace pydiff::check {

// The four words of an element's block: philox.h in 64-bit integers.
inline std::array<uint64_t, 4> words(const NoiseKey& key, uint32_t sample, uint32_t step, int64_t element) {
    std::array<uint64_t, 4> c = {uint64_t(element / 4), step, sample, key.purpose};
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = 0xD2511F53u * c[0], second = 0xCD9E8D57u * c[2];
        c[0] = (second >> 32) ^ c[1] ^ k0, c[1] = second & 0xFFFFFFFFu;
        c[2] = (first >> 32) ^ c[3] ^ k1, c[3] = first & 0xFFFFFFFFu;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c;
}

inline double uniform_number(const NoiseKey& key, uint32_t sample, uint32_t step, int64_t element) {
    return double(words(key, sample, step, element)[size_t(element % 4)] >> 8) * 0x1p-24;
}

inline double normal_number(const NoiseKey& key, uint32_t sample, uint32_t step, int64_t element) {
    const std::array<uint64_t, 4> c = words(key, sample, step, element);
    const uint64_t even = c[size_t(element % 4 / 2 * 2)], odd = c[size_t(element % 4 / 2 * 2 + 1)];
    const double radius = std::sqrt(-2.0 * std::log(double((even >> 8) + 1) * 0x1p-24));
    const double angle = 2.0 * 3.14159265358979323846 * double(odd >> 8) * 0x1p-24;
    return radius * (element % 2 ? std::sin(angle) : std::cos(angle));
}

// A key whose samples and steps are on the device, and the normals and uniform numbers that it generates.
struct Noise {
    Noise(int64_t n, int64_t size) {
        Numbers sample, step;
        for (int64_t i = 0; i < n; ++i) sample.push_back(double(3 * i + 4000000000)), step.push_back(double(7 * i));
        sample_ = std::make_unique<Array<uint32_t>>(sample);
        step_ = std::make_unique<Array<uint32_t>>(step);
        key = {0x123456789ABCDEFu, 3, *sample_, *step_};
        for (int64_t i = 0; i < n * size; ++i) {
            const auto of = size_t(i / size);
            eps.push_back(normal_number(key, uint32_t(sample[of]), uint32_t(step[of]), i % size));
            uniform.push_back(uniform_number(key, uint32_t(sample[of]), uint32_t(step[of]), i % size));
        }
    }
    NoiseKey key;
    Numbers eps, uniform;

private:
    std::unique_ptr<Array<uint32_t>> sample_, step_;
};

}  // namespace pydiff::check
