// silu(gate) * up, step by step as kernels/qlinear/gating.py has it: the same bits in every variant.
#pragma once

#include "exp_parts.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

// exp(x) for x <= 0, and 0 below -87. NaN stays NaN.
DLM_EDGE_INLINE Vec ExpNegative(Vec x) {
  const ExpParts parts = SplitExp(x);
  const Vec power = (Vec)(((UintVec)parts.shifted + (127u - 0x4B400000u)) << 23);  // of no use below -87, then dropped
  return x < -87.0f ? Vec{} : parts.p * power;
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
