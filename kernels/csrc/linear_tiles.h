// QLinear's product of some tiles of columns with some rows, panel by panel (linear_panel.h), on codes that are
// unpacked to bytes first where many row tiles share them.
//
// A file that includes this defines before it what linear_panel.h wants, and
//   kPackedRowTiles  up to how many row tiles take the codes as they are, each unpacking for itself
// and after it RunPanel: linear_panels.h, linear_avx2.cpp, linear_amx.cpp.
#pragma once

#include "linear_finish.h"
#include "linear_panel.h"
#include "linear_rounding.h"
#include "linear_stretch.h"
#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int64_t kBlockRows = 128;  // rows whose float32 sums are kept at a time
constexpr int kAlways = 1 << 30;     // of kPackedRowTiles
// A single row tile reads codes as fast as memory gives them, and a processor's own fetching ends with each page. Bytes,
// the best of a few that were tried.
constexpr int64_t FarAhead(int bits) { return bits == 8 ? 2048 : 4096; }

// Codes of `bits` bits to one a byte: `k` of them for each column of a tile.
template <int bits>
DLM_EDGE_INLINE void Unpack(const uint8_t* codes, int64_t k, uint8_t* out) {
  constexpr int per_byte = 8 / bits;
  constexpr uint32_t mask = (0xffu >> (8 - bits)) * 0x01010101u;
  const int64_t n_vectors = k / (4 * per_byte);
  for (int64_t i = 0; i < n_vectors; ++i, codes += kVector)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const UintVec packed = (UintVec)LoadInts(codes + v * 4 * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < per_byte; ++j)
        StoreInts((IntVec)((packed >> (j * bits)) & mask), out + (i * per_byte + j) * kVector + v * 4 * kLanes);
    }
}

// C tiles of columns, times rows of whole row tiles (kBlockRows of them at most).
struct TilesTask {
  const ProductTask* product;
  int64_t row_begin, row_end, tile;
  bool has_next;  // tiles behind them, which come next
  float* total;   // [rows, C * 16]
  int32_t* partial;   // the same
  uint8_t* unpacked;  // [C, kPanelK, 16]
};

// What the panels of a stretch have in common.
template <int C, int bits>
DLM_EDGE_INLINE PanelTask PanelOf(const TilesTask& task, const Stretch& stretch, const GroupNumbers& numbers) {
  const LinearWeight& weight = *task.product->weight;
  const int64_t tile_bytes = CodeBytes(bits, task.product->rounded->filled_k);
  PanelTask panel{};
  panel.codes = weight.codes + task.tile * tile_bytes + CodeBytes(bits, stretch.begin);
  panel.tile_stride = panel.ahead_stride = tile_bytes;
  panel.n_groups = stretch.n_groups;
  panel.k = stretch.k;
  panel.zero = weight.float_zeros == nullptr ? 1 << (bits - 1) : 0;
  panel.zeros = weight.zeros == nullptr ? nullptr : numbers.zeros;
  panel.scales = numbers.scales;
  panel.float_zeros = weight.float_zeros == nullptr ? nullptr : numbers.float_zeros;
  panel.is_first = stretch.is_first;
  panel.is_last = stretch.is_last;
  return panel;
}

template <int C, int bits>
DLM_EDGE_INLINE void MultiplyStretch(const TilesTask& task, int64_t all_k, const Stretch& stretch) {
  const LinearWeight& weight = *task.product->weight;
  const RoundedRows& rounded = *task.product->rounded;
  const int64_t n_row_tiles = (task.row_end - task.row_begin + kRows - 1) / kRows;
  const int64_t count = stretch.n_groups * stretch.k;
  GroupNumbers numbers;
  ReadNumbers<C>(weight, task.tile, stretch, &numbers);
  PanelTask panel = PanelOf<C, bits>(task, stretch, numbers);
  const bool is_end = stretch.end() >= all_k;
  const uint8_t* next =
      is_end ? weight.codes + (task.tile + C) * panel.tile_stride : panel.codes + CodeBytes(bits, count);
  if (n_row_tiles == 1) next = panel.codes + FarAhead(bits);
  if (n_row_tiles == 1 || task.has_next || !is_end) panel.ahead_step = CodeBytes(bits, 16) / n_row_tiles;
  const bool unpacks = bits != 8 && n_row_tiles > kPackedRowTiles;
  if (unpacks) {
    for (int c = 0; c < C; ++c)
      Unpack<bits>(panel.codes + c * panel.tile_stride, count, task.unpacked + c * count * kTileColumns);
    panel.codes = task.unpacked;
    panel.tile_stride = count * kTileColumns;
  }
  for (int64_t row = task.row_begin; row < task.row_end; row += kRows) {
    const int64_t r = task.row_end - row < kRows ? task.row_end - row : kRows, at = row - task.row_begin;
    panel.rows = rounded.codes + (row * rounded.filled_k + stretch.begin * r) * rounded.form.code_bytes();
    panel.sums = rounded.sums + row * weight.n_groups + stretch.group * r;
    if (rounded.n_blocks > 1) panel.row_scales = rounded.scales + row * rounded.n_blocks + stretch.group * r;
    panel.partial = task.partial + at * C * kTileColumns;
    panel.total = task.total + at * C * kTileColumns;
    panel.ahead = next + at / kRows * (count / 16) * panel.ahead_step;
    if (is_end) PrefetchOutput<C>(*task.product, row, r, task.tile);
    if constexpr (bits != 8 && kPackedRowTiles < kAlways)
      if (unpacks) {
        RunPanel<C, kUnpacked>(r, panel);
        continue;
      }
    if constexpr (bits == 8 || kPackedRowTiles > 0) RunPanel<C, bits>(r, panel);
  }
}

template <int C, int bits>
void MultiplyTiles(const ProductTask& task, int64_t row_begin, int64_t row_end, int64_t tile, bool has_next) {
  static thread_local Scratch scratch;
  constexpr int width = C * kTileColumns;
  const RoundedRows& rounded = *task.rounded;
  const size_t sums_bytes = Aligned((row_end - row_begin) * width * sizeof(float));
  char* const memory = scratch.Reserve(2 * sums_bytes + kPanelK * width);
  float* const total = reinterpret_cast<float*>(memory);
  const TilesTask tiles = {&task, row_begin, row_end, tile, has_next, total,
                           reinterpret_cast<int32_t*>(memory + sums_bytes),
                           reinterpret_cast<uint8_t*>(memory + 2 * sums_bytes)};
  memset(total, 0, sums_bytes);
  const int64_t step = rounded.form.unit > 16 ? rounded.form.unit : 16;
  const int64_t all_k = (task.weight->in_features + step - 1) / step * step;
  for (int64_t k = 0; k < all_k;) {
    const Stretch stretch = StretchAt(*task.weight, all_k, k);
    MultiplyStretch<C, bits>(tiles, all_k, stretch);
    k = stretch.end();
  }
  for (int64_t row = row_begin; row < row_end; ++row)
    for (int c = 0; c < C; ++c)
      Finish(task, row, tile + c, total + (row - row_begin) * width + c * kTileColumns);
}

template <int bits>
void MultiplyBits(const ProductTask& task) {
  // Blocks of equal numbers of row tiles.
  const int64_t n_rows = task.row_end - task.row_begin, n_blocks = (n_rows + kBlockRows - 1) / kBlockRows;
  const int64_t block = ((n_rows + kRows - 1) / kRows + n_blocks - 1) / n_blocks * kRows;
  for (int64_t row = task.row_begin; row < task.row_end; row += block) {
    const int64_t end = task.row_end - row < block ? task.row_end : row + block;
    int64_t tile = task.tile_begin;
    for (; tile + kTiles <= task.tile_end; tile += kTiles)
      MultiplyTiles<kTiles, bits>(task, row, end, tile, tile + 2 * kTiles <= task.tile_end);
    for (; tile < task.tile_end; ++tile) MultiplyTiles<1, bits>(task, row, end, tile, tile + 1 < task.tile_end);
  }
}

void MultiplyLinear(const ProductTask& task) {
  switch (task.weight->bits) {
    case 8: return MultiplyBits<8>(task);
    case 4: return MultiplyBits<4>(task);
    default: return MultiplyBits<2>(task);
  }
}

}  // namespace
}  // namespace dlm_edge
