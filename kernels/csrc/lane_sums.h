// Sums over the lanes of vectors.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

typedef float Quad __attribute__((vector_size(16), may_alias));
typedef float LooseQuad __attribute__((vector_size(16), may_alias, aligned(4)));

// Four lanes with the same sum as all lanes.
DLM_EDGE_INLINE Quad Fold(Vec v) {
#if defined(__AVX512F__)
  const __m256 half =
      _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 0) + _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1);
  return (Quad)(_mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif defined(__AVX__)
  return (Quad)(_mm256_castps256_ps128((__m256)v) + _mm256_extractf128_ps((__m256)v, 1));
#else
  static_assert(kLanes == 4, "a vector is a quad");
  return (Quad)v;
#endif
}

// The sums of the lanes of a, b, c, d, in this order.
DLM_EDGE_INLINE Quad SumLanes(Quad a, Quad b, Quad c, Quad d) {
#if defined(__x86_64__)
  const __m128 ab = _mm_unpacklo_ps((__m128)a, (__m128)b) + _mm_unpackhi_ps((__m128)a, (__m128)b);
  const __m128 cd = _mm_unpacklo_ps((__m128)c, (__m128)d) + _mm_unpackhi_ps((__m128)c, (__m128)d);
  return (Quad)(_mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab));
#else
  return Quad{a[0] + a[2] + (a[1] + a[3]), b[0] + b[2] + (b[1] + b[3]), c[0] + c[2] + (c[1] + c[3]),
              d[0] + d[2] + (d[1] + d[3])};
#endif
}

DLM_EDGE_INLINE float SumLanes(Vec v) {
  const Quad four = Fold(v);
  return four[0] + four[2] + (four[1] + four[3]);
}

}  // namespace
}  // namespace dlm_edge
