// csrc/cpu/elementwise.cpp against its equations: exactly, for nothing is rounded twice.
#include "../elementwise.h"

#include "../../cuda/check/check.h"

namespace pydiff::check {
namespace {

void check_add_rows(int64_t rows, int64_t b_rows, int64_t size) {
    Numbers a = random_numbers(rows * size, 1), b = random_numbers(b_rows * size, 2), sum;
    const Array<float> a_(a), b_(b);
    for (int64_t i = 0; i < rows * size; ++i)
        sum.push_back(float(a[i] + b[i / size / (rows / b_rows) * size + i % size]));
    judge(name("add_rows", 4, {rows, b_rows, size}), {sum}, 0.0, [&] {
        const Array<float> sum_(rows * size);
        add_rows(rows, b_rows, size, a_, b_, sum_);
        return std::vector<Numbers>{sum_.read()};
    });
}

void check_join_rows(int64_t rows, int64_t a_size, int64_t b_size) {
    Numbers a = random_numbers(rows * a_size, 1), b = random_numbers(rows * b_size, 2), joined;
    const Array<float> a_(a), b_(b);
    for (int64_t i = 0; i < rows; ++i) {
        joined.insert(joined.end(), a.begin() + i * a_size, a.begin() + (i + 1) * a_size);
        joined.insert(joined.end(), b.begin() + i * b_size, b.begin() + (i + 1) * b_size);
    }
    judge(name("join_rows", 4, {rows, a_size, b_size}), {joined}, 0.0, [&] {
        const Array<float> joined_(rows * (a_size + b_size));
        join_rows(rows, a_size, b_size, a_, b_, joined_);
        return std::vector<Numbers>{joined_.read()};
    });
}

void check_elementwise() {
    check_add_rows(6, 2, 5);
    check_add_rows(4, 4, 17);
    check_add_rows(300, 3, 64);
    check_join_rows(3, 5, 2);
    check_join_rows(1, 1, 33);
    check_join_rows(700, 24, 8);
}

const Op elementwise_op("elementwise", {check_elementwise});

}  // namespace
}  // namespace pydiff::check
