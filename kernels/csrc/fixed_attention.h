// Attention over coded pages in integers: VPDPWSSD multiplies 32 pairs of 16 bits where a float instruction multiplies
// 16 of 32. Rows, keys, softmax weights and values are fixed point; scores, sums and results stay float32, as do the
// window, the exact keys of the tail, tasks of few rows (few_rows.h) and all shapes that do not fit (the exact path).
//
// Errors, roundings taken as independent uniform noise (0.29 units each, 0.5 for the three of a coded number): a score
// q . k is off by 0.29 |q| |k| / kRowLength and by 0.5 |q| U, U the unit of its group of keys: the length of the
// largest numbers its codes can stand for, over kKeyLength; each softmax weight by 0.29 / 32767 of its tile's sum; a
// value by 0.5 / kLargest of the largest in its tile. Normal numbers, head_dim 128: 2e-4 in a scaled score, 7e-5 in a value and
// in the weights' sum over a tile, against 5e-3 that 8-bit codes are off themselves. Never more than sqrt(3) (row),
// 3 (key) times as much in each channel. Integer sums have no order: the same bits with any number of threads.
#pragma once

#include "attention_tiles.h"
#include "fixed_rows.h"

namespace dlm_edge {
namespace {

template <int R>
DLM_EDGE_INLINE void WeighFixedValues(const FixedTile& keys, int64_t d, int64_t head_dim, const IntVec* weights,
                                      const Vec* rescale, const Vec* unit, Vec* out_t) {
  IntVec sum[kBlock][R] = {};
  MultiplyPairs<kBlock, R>(keys.v + 2 * d, 1, head_dim, weights, (keys.n_keys + 1) / 2, sum);
#pragma GCC unroll 16
  for (int n = 0; n < kBlock; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      out_t[n * R + r] = out_t[n * R + r] * rescale[r] + __builtin_convertvector(sum[n][r], Vec) * unit[r];
}

template <int R>
void AttendFixedTile(const RowTile& tile, const FixedRows& rows, int64_t head_dim, const FixedTile& keys,
                     Fetch while_scoring, Fetch while_weighing, Vec* scores) {
  const int64_t n_keys = keys.n_keys;
  int64_t key = 0;
  for (; key + kBlock <= n_keys; key += kBlock) {
    while_scoring.Rows(kBlock);
    ScoreFixedKeys<kBlock, R>(keys, key, head_dim, rows, scores + key * R);
  }
  while_scoring.Rows(n_keys - key);
  for (; key < n_keys; ++key) ScoreFixedKeys<1, R>(keys, key, head_dim, rows, scores + key * R);

  Vec rescale[R], unit[R];
  IntVec* const weights = reinterpret_cast<IntVec*>(scores);  // of two keys each, over those that have been read
  for (int r = 0; r < R; ++r) {
    Vec row_max = tile.row_max[r];
    for (int64_t j = 0; j < n_keys; ++j) row_max = Max(row_max, scores[j * R + r]);
    rescale[r] = Exp2(tile.row_max[r] - row_max);
    tile.row_max[r] = row_max;
    Vec sum = {};
    for (int64_t j = 0; j < n_keys; ++j) {
      const Vec weight = Exp2(scores[j * R + r] - row_max);
      scores[j * R + r] = weight;
      sum += weight;
    }
    tile.row_sum[r] = tile.row_sum[r] * rescale[r] + sum;
    const Vec by_weight = sum > 0.0f ? 32767.0f / sum : Vec{};
    unit[r] = sum * (keys.v_unit / 32767.0f);
    for (int64_t j = 0; j < n_keys; j += 2) {
      const Vec first = scores[j * R + r] * by_weight, second = scores[(j + 1) * R + r] * by_weight;
      weights[j / 2 * R + r] = Rounded(first) | (j + 1 < n_keys ? Rounded(second) << 16 : IntVec{});
    }
  }

  const int64_t rows_per_block = while_weighing.tile->n_keys * kBlock / head_dim + 1;
  for (int64_t d = 0; d < head_dim; d += kBlock) {
    while_weighing.Rows(rows_per_block);
    WeighFixedValues<R>(keys, d, head_dim, weights, rescale, unit, tile.out_t + d * R);
  }
}

void AttendFixedTile(const RowTile& tile, const FixedRows& rows, int64_t head_dim, const FixedTile& keys,
                     Fetch while_scoring, Fetch while_weighing, Vec* scores) {
  static_assert(kMaxRowVectors <= 3, "one case per tile width");
  switch (tile.row_vectors) {
    case 1: return AttendFixedTile<1>(tile, rows, head_dim, keys, while_scoring, while_weighing, scores);
    case 2: return AttendFixedTile<2>(tile, rows, head_dim, keys, while_scoring, while_weighing, scores);
    default: return AttendFixedTile<3>(tile, rows, head_dim, keys, while_scoring, while_weighing, scores);
  }
}

// As AttendKeys. A tile that has exact keys is worked on in float32.
void AttendCodes(const RowTask& task, const RowTile* tiles, const FixedRows* rows, int n_tiles, char* memory,
                 Vec* scores) {
  const KeyLayout layout = LayoutOf(task.rows.head_dim, task.cache);
  KeyWalk walk{task.ranges, task.ranges + task.n_ranges, 0, true};
  KeyTile buffers[3];
  KeyTile nothing;
  nothing.n_segments = 0;
  nothing.n_keys = 0;
  KeyTile *raw = &buffers[0], *next = &buffers[1], *floats = &buffers[2];
  FixedTile fixed = PlaceFixedTile(layout.head_dim, task.cache->v_group, memory);
  walk.Next(layout, raw);
  while (raw->n_keys > 0) {
    walk.Next(layout, next);
    const bool exact = HasExactKeys(*raw, *task.cache);
    if (exact)
      ReadTile(layout, *raw, true, reinterpret_cast<float*>(memory), floats);
    else
      FixTile(layout, *raw, true, &fixed);
    Fetch while_scoring{next, false, layout.row_bytes, 0, 0}, while_weighing{next, true, layout.row_bytes, 0, 0};
    for (int t = 0; t < n_tiles; ++t) {
      if (exact)
        AttendTile(tiles[t], layout.head_dim, *floats, raw->n_keys, while_scoring, while_weighing, scores);
      else
        AttendFixedTile(tiles[t], rows[t], layout.head_dim, fixed, while_scoring, while_weighing, scores);
      while_scoring.tile = while_weighing.tile = &nothing;
    }
    KeyTile* const read = raw;
    raw = next;
    next = read;
  }
}

void AttendFixed(const RowTask& task) {
  const int64_t dim = task.rows.head_dim;
  if (task.attn_block != 0 || !FitsFixedTiles(task.cache, dim) || SuitsFewRows(task)) return Attend(task);
  const RowCut cut(task.rows);
  const size_t tile_bytes = Aligned(TileFloats(dim) * sizeof(float)), rows_bytes = cut.n_vectors * FixedRowBytes(dim);
  const size_t bytes = tile_bytes + rows_bytes + cut.n_tiles * sizeof(FixedRows);
  AttendRows(task, bytes, [&](const RowTile* tiles, int n_tiles, char* memory, Vec* scores) {
    char* const fixed = memory + tile_bytes;
    FixedRows* const rows = reinterpret_cast<FixedRows*>(fixed + rows_bytes);
    for (int t = 0; t < n_tiles; ++t)
      rows[t] = FixRows(tiles[t].q_t, cut.RowVectors(t), dim, fixed + cut.FirstVector(t) * FixedRowBytes(dim));
    AttendCodes(task, tiles, rows, n_tiles, memory, scores);
  });
}

}  // namespace
}  // namespace dlm_edge
