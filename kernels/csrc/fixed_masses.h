// The attention masses of pages of codes, scored in integers as in fixed_attention.h.
#pragma once

#include "fixed_rows.h"
#include "mass_tiles.h"

namespace dlm_edge {
namespace {

template <int R>
void AddFixedShares(const FixedTile& keys, int64_t head_dim, const FixedRows& rows, const Vec* lse, Vec* shares) {
  Vec scores[kBlock * R];
  int64_t key = 0;
  for (; key + kBlock <= keys.n_keys; key += kBlock) {
    ScoreFixedKeys<kBlock, R>(keys, key, head_dim, rows, scores);
    AddShares<R>(scores, kBlock, lse, shares);
  }
  for (; key < keys.n_keys; ++key) {
    ScoreFixedKeys<1, R>(keys, key, head_dim, rows, scores);
    AddShares<R>(scores, 1, lse, shares);
  }
}

void AddFixedShares(int row_vectors, const FixedTile& keys, int64_t head_dim, const FixedRows& rows, const Vec* lse,
                    Vec* shares) {
  static_assert(kMaxRowVectors <= 3, "one case per tile width");
  switch (row_vectors) {
    case 1: return AddFixedShares<1>(keys, head_dim, rows, lse, shares);
    case 2: return AddFixedShares<2>(keys, head_dim, rows, lse, shares);
    default: return AddFixedShares<3>(keys, head_dim, rows, lse, shares);
  }
}

void MeasureFixed(const MassTask& task) {
  static thread_local Scratch scratch;
  const int64_t dim = task.rows.head_dim;
  if (!FitsFixedTiles(task.cache, dim)) return Measure(task);
  const KeyLayout layout = LayoutOf(dim, task.cache);
  const size_t tile_bytes = Aligned(TileFloats(dim) * sizeof(float)), rows_bytes = MassRows::Bytes(task.rows);
  char* const memory =
      scratch.Reserve(tile_bytes + rows_bytes + RowCut(task.rows).n_vectors * FixedRowBytes(dim));
  char* const fixed_rows = memory + tile_bytes + rows_bytes;
  const MassRows rows(task, memory + tile_bytes);
  for (int t = 0; t < rows.cut.n_tiles; ++t) {
    const int64_t vector = rows.cut.FirstVector(t);
    FixRows(rows.q_t + dim * vector, rows.cut.RowVectors(t), dim, fixed_rows + vector * FixedRowBytes(dim));
  }
  FixedTile fixed = PlaceFixedTile(dim, task.cache->v_group, memory);
  MeasurePages(task, rows.cut.n_vectors, rows.shares, [&](const KeyTile& raw) {
    if (HasExactKeys(raw, *task.cache)) {
      KeyTile floats;
      ReadTile(layout, raw, false, reinterpret_cast<float*>(memory), &floats);
      return rows.Add(floats, dim);
    }
    FixTile(layout, raw, false, &fixed);
    for (int t = 0; t < rows.cut.n_tiles; ++t) {
      const int64_t vector = rows.cut.FirstVector(t);
      const int n = rows.cut.RowVectors(t);
      const FixedRows of_tile = FixedRowsAt(fixed_rows + vector * FixedRowBytes(dim), n, dim);
      AddFixedShares(n, fixed, dim, of_tile, rows.lse + vector, rows.shares + vector);
    }
  });
}

}  // namespace
}  // namespace dlm_edge
