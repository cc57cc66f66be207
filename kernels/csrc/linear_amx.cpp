// QLinear with AMX tiles: 32 rows times 32 columns, as two by two tiles of 16 by 16 sums.
//
// A tile of codes is what linear_task.h calls 16 vectors: 16 rows of 16 columns times 4 k. A tile of rows is 16 rows of
// up to 64 k: 64 where the group allows, so that groups of 32 leave half of a tile unused.
#include <immintrin.h>

#define DLM_EDGE_LANES 16
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 8
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 32, kTiles = 2;
constexpr int kPackedRowTiles = 0;  // tiles are loaded from memory

}  // namespace
}  // namespace dlm_edge

#include "linear_tiles.h"

namespace dlm_edge {
namespace {

constexpr int kTileRows = 16;

// How many k one tile of rows has: they divide groups and panels.
int TileK(const LinearWeight& weight) {
  if (weight.n_groups == 1 || weight.group_size % 64 == 0) return 64;
  return weight.group_size % 32 == 0 ? 32 : 16;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 ... 3 are sums [row tile * 2 + column tile], 4 and 5 rows, 6 and 7 codes.
void Shape(int low_rows, int high_rows, int k) {
  TileShapes shapes;
  const auto set = [&](int tile, int rows, int bytes) {
    shapes.rows[tile] = static_cast<uint8_t>(rows);
    shapes.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  for (int column = 0; column < 2; ++column) {
    set(column, low_rows, 64);
    set(2 + column, high_rows > 0 ? high_rows : 1, 64);
    set(6 + column, k / 4, 64);
  }
  set(4, low_rows, k);
  set(5, high_rows > 0 ? high_rows : 1, k);
  _tile_loadconfig(&shapes);
}

// The shapes in use on this thread, as long as one task runs.
struct Shaped {
  int rows = 0, k = 0;

  void Use(int new_rows, int new_k) {
    if (rows == new_rows && k == new_k) return;
    rows = new_rows;
    k = new_k;
    Shape(rows < kTileRows ? rows : kTileRows, rows - kTileRows, k);
  }
};
thread_local Shaped shaped;
thread_local int unit;

template <int C, int form>
DLM_EDGE_INLINE void RunGroup(int64_t n_rows, const PanelTask& task, const GroupPart& part) {
  constexpr int width = C * kTileColumns, stride = width * sizeof(int32_t);
  const bool has_high = n_rows > kTileRows;
  alignas(64) int32_t products[kRows][width];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int8_t* rows = part.rows;
  const uint8_t *codes = part.codes, *ahead = part.ahead;
  for (int64_t k = 0; k < task.k; k += unit, rows += n_rows * unit, codes += kTileColumns * unit) {
    FetchAhead<C>(task, &ahead, unit / 16);
    _tile_loadd(4, rows, unit);
    _tile_loadd(6, codes, kVector);
    _tile_dpbsud(0, 4, 6);
    if constexpr (C == 2) {
      _tile_loadd(7, codes + task.tile_stride, kVector);
      _tile_dpbsud(1, 4, 7);
    }
    if (has_high) {
      _tile_loadd(5, rows + kTileRows * unit, unit);
      _tile_dpbsud(2, 5, 6);
      if constexpr (C == 2) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, &products[0][0], stride);
  if constexpr (C == 2) _tile_stored(1, &products[0][kTileColumns], stride);
  if (has_high) {
    _tile_stored(2, &products[kTileRows][0], stride);
    if constexpr (C == 2) _tile_stored(3, &products[kTileRows][kTileColumns], stride);
  }
  for (int r = 0; r < n_rows; ++r)
    WithTotals<1, C>(task, r, [&](Vec(&totals)[1][C * kVectors]) {
      IntVec sums[1][C * kVectors];
      BeginSums<1, C>(task, part, r, sums);
      for (int v = 0; v < C * kVectors; ++v) sums[0][v] += LoadInts(&products[r][v * kLanes]);
      EndSums<1, C>(task, part, r, sums, totals);
    });
}

template <int C, int form>
void RunPanel(int64_t n_rows, const PanelTask& task) {
  shaped.Use(static_cast<int>(n_rows), unit);
  EachGroup<C, form>(task, n_rows, 1, [&](const GroupPart& part) { RunGroup<C, form>(n_rows, task, part); });
}

RowForm Tiled(const LinearWeight& weight) { return {TileK(weight), false}; }

void MultiplyInTiles(const ProductTask& task) {
  unit = task.rounded->form.unit;
  shaped = Shaped();
  MultiplyLinear(task);
  _tile_release();
}

}  // namespace
}  // namespace dlm_edge

const dlm_edge::LinearKernel dlm_edge::kAmxLinear = {"amx", kRows, Tiled, Round, MultiplyInTiles};
