// A panel of QLinear in sums of 16 bits, for codes up to 15; linear_avx2.cpp says why they are enough.
#pragma once

#include "linear_panel.h"

namespace dlm_edge {
namespace {

DLM_EDGE_INLINE IntVec AddPairs(IntVec pairs) {
  return (IntVec)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
}

template <int R, int C, int form>
DLM_EDGE_INLINE void BytePanel(const PanelTask& task, const GroupPart& part, Vec (&totals)[R][C * kVectors]) {
  constexpr int V = C * kVectors, per_byte = form == kUnpacked ? 1 : 8 / form;
  constexpr uint32_t mask = form == kUnpacked ? 0 : (0xffu >> (8 - form)) * 0x01010101u;
  IntVec sums[R][V];
  BeginSums<R, C>(task, part, 0, sums);
  const uint8_t *codes = part.codes, *ahead = part.ahead;
  const int8_t* rows = part.rows;
  for (int64_t left = task.k / (4 * per_byte); left > 0;) {
    const int64_t n = left < 8 / per_byte ? left : 8 / per_byte;  // eight products of four k at a time
    left -= n;
    FetchAhead<C>(task, &ahead, (n * per_byte + 3) / 4);
    __m256i pairs[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) pairs[r][v] = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; ++i, codes += kVector) {
      UintVec packed[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        packed[v] = (UintVec)LoadInts(codes + v / kVectors * task.tile_stride + v % kVectors * 4 * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < per_byte; ++j, rows += 4 * R) {
        IntVec bytes[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          bytes[v] = (IntVec)(form == kUnpacked ? packed[v] : (packed[v] >> (j * form)) & mask);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m256i row = (__m256i)Broadcast(rows + 4 * r);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v)
            pairs[r][v] = _mm256_add_epi16(pairs[r][v], _mm256_maddubs_epi16((__m256i)bytes[v], row));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] += AddPairs((IntVec)pairs[r][v]);
  }
  EndSums<R, C>(task, part, 0, sums, totals);
}

}  // namespace
}  // namespace dlm_edge
