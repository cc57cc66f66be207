// exp(x) for x <= 0 in two parts, before they are put together.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

// exp(x) = p * 2^n below 1 ulp off for -87 <= x <= 0; `shifted` holds n in its low bits.
struct ExpParts {
  Vec shifted, p;
};

DLM_EDGE_INLINE ExpParts SplitExp(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec shifted = x * 1.44269504f + 12582912.0f;
  const Vec n = shifted - 12582912.0f;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-06f;  // the first product is exact
  // exp(r) = 1 + r + r^2 * p(r) on [-log(2) / 2, log(2) / 2], relative error 3e-9 before rounding.
  Vec p = 0.00138145348f * r + 0.00836874545f;
  p = p * r + 0.0416683927f;
  p = p * r + 0.166665211f;
  p = p * r + 0.49999994f;
  return {shifted, (p * (r * r) + r) + 1.0f};
}

}  // namespace
}  // namespace dlm_edge
