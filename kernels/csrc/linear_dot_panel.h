// A panel of QLinear by way of an instruction set's dot product, which the including file defines:
//
//   kRowBytes                    what four k of a row take
//   CodeOperand Operand(IntVec)  from codes, one a byte; made once for all rows
//   RowOperand RowOf(const int8_t* rows)
//   IntVec Dot(IntVec sums, CodeOperand codes, RowOperand row)   sums + the four products of each lane
#pragma once

#include "linear_panel.h"

namespace dlm_edge {
namespace {

template <int R, int C, int form>
DLM_EDGE_INLINE void DotPanel(const PanelTask& task, const GroupPart& part, Vec (&totals)[R][C * kVectors]) {
  constexpr int bits = form == kUnpacked ? 8 : form;
  constexpr int V = C * kVectors, per_byte = 8 / bits;
  constexpr uint32_t mask = (0xffu >> (8 - bits)) * 0x01010101u;
  // 16 k at a time. A few sums alone would wait for each other, so that each of the four dot products has its own.
  constexpr int n_vectors = 4 / per_byte, n_sets = R * V <= 4 ? 4 : 1;
  IntVec sums[n_sets][R][V] = {};
  BeginSums<R, C>(task, part, 0, sums[0]);
  const uint8_t *codes = part.codes, *ahead = part.ahead;
  const int8_t* rows = part.rows;
  for (int64_t k = task.k; k > 0; k -= 16) {
    FetchAhead<C>(task, &ahead, 1);
#pragma GCC unroll 4
    for (int i = 0; i < n_vectors; ++i, codes += kVector) {
      UintVec packed[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        packed[v] = (UintVec)LoadInts(codes + v / kVectors * task.tile_stride + v % kVectors * 4 * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < per_byte; ++j, rows += kRowBytes * R) {
        CodeOperand operands[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            operands[v] = Operand((IntVec)(bits == 8 ? packed[v] : (packed[v] >> (j * bits)) & mask));
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const RowOperand row = RowOf(rows + kRowBytes * r);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            IntVec& sum = sums[(i * per_byte + j) % n_sets][r][v];
            sum = Dot(sum, operands[v], row);
          }
        }
      }
    }
  }
  EachSum<R, V>([&](int r, int v) {
#pragma GCC unroll 4
    for (int set = 1; set < n_sets; ++set) sums[0][r][v] += sums[set][r][v];
  });
  EndSums<R, C>(task, part, 0, sums[0], totals);
}

}  // namespace
}  // namespace dlm_edge
