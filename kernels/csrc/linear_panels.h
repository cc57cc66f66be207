// A panel of QLinear by way of Dot, which the including file defines:
//
//   IntVec Dot(IntVec sums, IntVec codes, IntVec rows)   sums + the four products of each lane's bytes, unsigned times
//                                                        signed, where codes of 8 bits count as code - kByteShift
#pragma once

#include "linear_tiles.h"

namespace dlm_edge {
namespace {

DLM_EDGE_INLINE int FourNeighbours(const LinearWeight&) { return 4; }

template <int R, int C, int form>
DLM_EDGE_INLINE void Panel(const PanelTask& task) {
  constexpr int bits = form == kUnpacked ? 8 : form;
  constexpr int V = C * kVectors, width = C * kTileColumns, per_byte = 8 / bits;
  constexpr uint32_t mask = (0xffu >> (8 - bits)) * 0x01010101u;
  IntVec sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      sums[r][v] = task.is_first ? Start(task, r, v * kLanes) : LoadInts(task.partial + r * width + v * kLanes);

  const uint8_t* codes = task.codes;
  const int8_t* rows = task.rows;
  for (int64_t i = task.k / (4 * per_byte); i > 0; --i, codes += kVector) {
    UintVec packed[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      packed[v] = (UintVec)LoadInts(codes + v / kVectors * task.tile_stride + v % kVectors * 4 * kLanes);
#pragma GCC unroll 4
    for (int j = 0; j < per_byte; ++j, rows += 4 * R) {
      IntVec bytes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) bytes[v] = (IntVec)(bits == 8 ? packed[v] : (packed[v] >> (j * bits)) & mask);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const IntVec row = Broadcast(rows + 4 * r);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[r][v] = Dot(sums[r][v], bytes[v], row);
      }
    }
  }

#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if (task.is_last)
        AddGroup(task, width, r, v * kLanes, sums[r][v]);
      else
        *(LooseIntVec*)(task.partial + r * width + v * kLanes) = sums[r][v];
    }
}

template <int C, int form>
struct Panels {
  template <int R>
  static void Run(const PanelTask& task) {
    Panel<R, C, form>(task);
  }
};

template <int C, int form>
void RunPanel(int64_t n_rows, const PanelTask& task) {
  RunRows<Panels<C, form>>(n_rows, task);
}

}  // namespace
}  // namespace dlm_edge
