// Query rows in 16-bit fixed point, and their scores against fixed-point keys. See fixed_attention.h.
#pragma once

#include "fixed_tiles.h"
#include "row_tiles.h"

namespace dlm_edge {
namespace {

struct FixedRows {
  IntVec* q;  // [head_dim / 2][R]: channels 2 i and 2 i + 1 of a row in one lane
  Vec* unit;  // [R]
};

DLM_EDGE_INLINE size_t FixedRowBytes(int64_t head_dim) { return (head_dim / 2 + 1) * sizeof(Vec); }  // of one vector

DLM_EDGE_INLINE FixedRows FixedRowsAt(char* memory, int n, int64_t head_dim) {
  IntVec* const q = reinterpret_cast<IntVec*>(memory);
  return {q, reinterpret_cast<Vec*>(q + head_dim / 2 * n)};
}

// q_t [head_dim][n]; the rows lie in `memory`.
FixedRows FixRows(const Vec* q_t, int n, int64_t head_dim, char* memory) {
  const FixedRows rows = FixedRowsAt(memory, n, head_dim);
  for (int r = 0; r < n; ++r) {
    Vec largest = {}, squares = {}, sum = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      const Vec q = q_t[d * n + r];
      largest = Max(largest, q < 0.0f ? -q : q);
      sum += q - q;  // NaN where a query is not finite
    }
    const Vec inverse_largest = largest > 1e-30f ? 1.0f / largest : Vec{};  // below: 0, and no infinite inverse
    for (int64_t d = 0; d < head_dim; ++d) {
      const Vec q = q_t[d * n + r] * inverse_largest;
      squares += q * q;
    }
    const Vec length = (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)squares);
    rows.unit[r] = length * largest / kRowLength + sum;
    const Vec inverse = length > 0.0f ? kRowLength / length : Vec{};
    for (int64_t d = 0; d < head_dim; d += 2) {
      const Vec even = q_t[d * n + r] * inverse_largest * inverse;
      const Vec odd = q_t[(d + 1) * n + r] * inverse_largest * inverse;
      rows.q[d / 2 * n + r] = (Rounded(even) & 0xffff) | Rounded(odd) << 16;
    }
  }
  return rows;
}

// sum[n][r] += sum_i a[n * stride_n + i * stride_i] . b[i][r], both pairs of 16 bits.
template <int N, int R>
DLM_EDGE_INLINE void MultiplyPairs(const int16_t* a, ptrdiff_t stride_n, ptrdiff_t stride_i, const IntVec* b,
                                   int64_t depth, IntVec (&sum)[N][R]) {
  for (int64_t i = 0; i < depth; ++i, a += 2 * stride_i, b += R) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      int32_t pair;
      memcpy(&pair, a + 2 * n * stride_n, sizeof pair);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        sum[n][r] = (IntVec)_mm512_dpwssd_epi32((__m512i)sum[n][r], (__m512i)b[r], _mm512_set1_epi32(pair));
    }
  }
}

template <int N, int R>
DLM_EDGE_INLINE void ScoreFixedKeys(const FixedTile& keys, int64_t key, int64_t head_dim, const FixedRows& rows,
                                    Vec* scores) {
  IntVec sum[N][R] = {};
  MultiplyPairs<N, R>(keys.k + key * head_dim, head_dim / 2, 1, rows.q, head_dim / 2, sum);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      scores[n * R + r] = __builtin_convertvector(sum[n][r], Vec) * (rows.unit[r] * keys.k_unit[key + n]);
}

bool HasExactKeys(const KeyTile& tile, const KeyCache& cache) {
  for (int s = 0; s < tile.n_segments; ++s)
    if (tile.segments[s].position + tile.segments[s].count > cache.tail_begin) return true;
  return false;
}

}  // namespace
}  // namespace dlm_edge
