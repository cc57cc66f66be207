// What the inner loops of QLinear have in common. One call works on a panel: some rows, some tiles of columns and a
// stretch of k, which is several whole groups or a part of one. Int32 sums become float32 once a group.
//
// A file that includes this sets DLM_EDGE_LANES and the constants of vectors.h, and defines before it
//   kRows     rows that one call works on at most
//   kTiles    tiles of columns that it works on at most
#pragma once

#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kVectors = kTileColumns / kLanes;  // of one tile

struct PanelTask {
  const int8_t* rows;  // [n_groups * k / unit, R, unit], in the form of the rows
  const uint8_t* codes;
  int64_t tile_stride;  // bytes from a tile to the next
  int64_t n_groups, k;  // k of each group, a multiple of 16
  const int32_t* sums;       // [n_groups, R]
  const float* row_scales;   // [n_groups, R], or null: the rows have one each, which comes last
  int32_t zero;              // of all columns, where `zeros` is null
  const int32_t* zeros;      // [n_groups, C * 16] or null
  const float* scales;       // [n_groups, C * 16]
  const float* float_zeros;  // [n_groups, C * 16] or null
  int32_t* partial;          // [R, C * 16]: sums of a group that goes on in the next panel
  float* total;              // [R, C * 16]
  bool is_first, is_last;    // of the panels of its group
  // Codes to be fetched by and by: those of the next panel, since nothing else is read while several row tiles use this
  // one, or of this panel further on. Line by line: many at once would hold up the loads of this panel.
  const uint8_t* ahead;
  int64_t ahead_stride, ahead_step;  // bytes from a tile to the next, and for each 16 k of this panel
};

// C tiles times n_rows, at most kRows. `form` is the number of bits of a code, or kUnpacked: codes of fewer than 8
// bits, one a byte.
constexpr int kUnpacked = 0;
template <int C, int form>
void RunPanel(int64_t n_rows, const PanelTask& task);

// Panels that are compiled for each number of rows: Panels::Run<R>.
template <class Panels, int R = kRows>
DLM_EDGE_INLINE void RunRows(int64_t n_rows, const PanelTask& task) {
  if (n_rows == R) return Panels::template Run<R>(task);
  if constexpr (R > 1) RunRows<Panels, R - 1>(n_rows, task);
}

typedef IntVec LooseIntVec __attribute__((aligned(4)));
DLM_EDGE_INLINE IntVec LoadInts(const void* from) { return *(const LooseIntVec*)from; }
DLM_EDGE_INLINE void StoreInts(IntVec values, void* to) { *(LooseIntVec*)to = values; }
DLM_EDGE_INLINE IntVec Broadcast(const void* four_bytes) {
  int32_t word;
  memcpy(&word, four_bytes, sizeof word);
  return IntVec{} + word;
}

// The bytes of `k` unpacked or packed codes of a tile.
constexpr int64_t CodeBytes(int form, int64_t k) { return k * kTileColumns * (form == kUnpacked ? 8 : form) / 8; }

// One group of a panel.
struct GroupPart {
  const int8_t* rows;
  const uint8_t* codes;
  const uint8_t* ahead;
  int64_t numbers;      // where its zeros and scales begin
  int64_t row_numbers;  // where the sums and scales of its rows begin
};

// `row_bytes` is what one k of a row takes.
template <int C, int form, class Body>
DLM_EDGE_INLINE void EachGroup(const PanelTask& task, int64_t n_rows, int row_bytes, Body body) {
  GroupPart part = {task.rows, task.codes, task.ahead, 0, 0};
  for (int64_t g = 0; g < task.n_groups; ++g) {
    body(part);
    part.rows += n_rows * task.k * row_bytes;
    part.codes += CodeBytes(form, task.k);
    part.ahead += task.k / 16 * task.ahead_step;
    part.numbers += C * kTileColumns;
    part.row_numbers += n_rows;
  }
}

// `step` bytes of each tile for every 16 k.
template <int C>
DLM_EDGE_INLINE void FetchAhead(const PanelTask& task, const uint8_t** ahead, int64_t n_steps) {
  const int64_t bytes = n_steps * task.ahead_step;
  for (int64_t i = 0; i < bytes; i += kVector)
    for (int c = 0; c < C; ++c) __builtin_prefetch(*ahead + i + c * task.ahead_stride, 0, 2);
  *ahead += bytes;
}

template <int R, int V, class Body>
DLM_EDGE_INLINE void EachSum(Body body) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) body(r, v);
}

// The float32 sums, which stay in registers over the groups of a panel where there are enough. Here and below, the R
// rows are those of the panel from `row` on.
template <int R, int C, class Body>
DLM_EDGE_INLINE void WithTotals(const PanelTask& task, int row, Body body) {
  constexpr int V = C * kVectors;
  float* const total = task.total + row * V * kLanes;
  Vec totals[R][V];
  EachSum<R, V>([&](int r, int v) { totals[r][v] = Load(total + (r * V + v) * kLanes); });
  body(totals);
  EachSum<R, V>([&](int r, int v) { Store(totals[r][v], total + (r * V + v) * kLanes); });
}

// What a group starts from: its zeros times the sums of the rows, taken off; or what the panel before has left.
template <int R, int C>
DLM_EDGE_INLINE void BeginSums(const PanelTask& task, const GroupPart& part, int row, IntVec (&sums)[R][C * kVectors]) {
  constexpr int V = C * kVectors;
  const int32_t* const partial = task.partial + row * V * kLanes;
  const int32_t* const row_sums = task.sums + part.row_numbers + row;
  if (!task.is_first)
    EachSum<R, V>([&](int r, int v) { sums[r][v] = LoadInts(partial + (r * V + v) * kLanes); });
  else if (task.zeros != nullptr)
    EachSum<R, V>([&](int r, int v) { sums[r][v] = LoadInts(task.zeros + part.numbers + v * kLanes) * -row_sums[r]; });
  else
    EachSum<R, V>([&](int r, int v) { sums[r][v] = IntVec{} - task.zero * row_sums[r]; });
}

// The sums of a group, times its scales, onto the float32 sums.
template <int R, int C, bool has_zeros, bool has_row_scales>
DLM_EDGE_INLINE void AddGroup(const PanelTask& task, const GroupPart& part, int row,
                              const IntVec (&sums)[R][C * kVectors], Vec (&totals)[R][C * kVectors]) {
  EachSum<R, C * kVectors>([&](int r, int v) {
    Vec values = __builtin_convertvector(sums[r][v], Vec);
    if constexpr (has_zeros)
      values -= Load(task.float_zeros + part.numbers + v * kLanes) * (float)task.sums[part.row_numbers + row + r];
    values *= Load(task.scales + part.numbers + v * kLanes);
    if constexpr (has_row_scales) values *= task.row_scales[part.row_numbers + row + r];
    totals[r][v] += values;
  });
}

// The end of a group, or what the next panel goes on from.
template <int R, int C>
DLM_EDGE_INLINE void EndSums(const PanelTask& task, const GroupPart& part, int row,
                             const IntVec (&sums)[R][C * kVectors], Vec (&totals)[R][C * kVectors]) {
  constexpr int V = C * kVectors;
  int32_t* const partial = task.partial + row * V * kLanes;
  if (!task.is_last)
    EachSum<R, V>([&](int r, int v) { StoreInts(sums[r][v], partial + (r * V + v) * kLanes); });
  else if (task.float_zeros == nullptr && task.row_scales == nullptr)
    AddGroup<R, C, false, false>(task, part, row, sums, totals);
  else if (task.float_zeros == nullptr)
    AddGroup<R, C, false, true>(task, part, row, sums, totals);
  else if (task.row_scales == nullptr)
    AddGroup<R, C, true, false>(task, part, row, sums, totals);
  else
    AddGroup<R, C, true, true>(task, part, row, sums, totals);
}

}  // namespace
}  // namespace dlm_edge
