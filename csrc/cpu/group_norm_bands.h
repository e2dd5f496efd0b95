// group_norm_forward in two halves, for an image that is normalised a band of rows at a time (pydiff/models/bands.py):
// the statistics of the whole one, and what they make of some of its pixels. Together they give the bits of the whole.
#pragma once
#include "kernels.h"

namespace pydiff {

// mean, rstd (n, groups) of x (n, s, c).
void group_norm_statistics(const GroupNormShape& s, float eps, const float* x, float* mean, float* rstd);

// y = act(gamma (x - mean) rstd + beta) for any s pixels of every sample; mean, rstd (n, groups), gamma, beta (c).
void group_norm_apply(const GroupNormShape& s, const float* x, const float* gamma, const float* beta, const float* mean,
                      const float* rstd, float* y);

}  // namespace pydiff
