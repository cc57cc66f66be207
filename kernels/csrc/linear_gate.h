// silu(gate) * up, step by step as kernels/qlinear/gating.py has it: the same bits in every variant.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

// exp(x) for x <= 0, and 0 below -87. NaN stays NaN.
DLM_EDGE_INLINE Vec ExpNegative(Vec x) {
  const Vec shifted = x * 1.44269504f + 12582912.0f;
  const Vec n = shifted - 12582912.0f;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-06f;
  const Vec power = (Vec)(((UintVec)shifted + (127u - 0x4B400000u)) << 23);  // of no use below -87, then dropped
  Vec p = 0.00138145348f * r + 0.00836874545f;
  p = p * r + 0.0416683927f;
  p = p * r + 0.166665211f;
  p = p * r + 0.49999994f;
  p = (p * (r * r) + r) + 1.0f;
  return x < -87.0f ? Vec{} : p * power;
}

DLM_EDGE_INLINE Vec Silu(Vec x) {
  const Vec one = Vec{} + 1.0f;
  const Vec e = ExpNegative((Vec)((UintVec)x | 0x80000000u));
  return x * ((x < 0.0f ? e : one) / (one + e));
}

DLM_EDGE_INLINE void GateRow(const float* gate, const float* up, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(Silu(Load(gate + i)) * Load(up + i), out + i);
  if (i == count) return;
  const size_t bytes = (count - i) * sizeof(float);
  float last[2][kLanes] = {};
  memcpy(last[0], gate + i, bytes);
  memcpy(last[1], up + i, bytes);
  Store(Silu(Load(last[0])) * Load(last[1]), last[0]);
  memcpy(out + i, last[0], bytes);
}

}  // namespace
}  // namespace dlm_edge
