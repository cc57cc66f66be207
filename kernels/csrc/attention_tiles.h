// The inner loops of PrefixBlockAttention:
//     scores[key][row] = sum_d    k[key][d] * q^T[d][row]
//     output[d][row]   = sum_key  v[key][d] * weights[key][row]
// Both are one register-blocked product, Multiply. The softmax is the online one, in base 2.
#pragma once

#include "few_rows.h"
#include "key_tiles.h"
#include "row_tiles.h"

namespace dlm_edge {
namespace {

template <int N, int R>
DLM_EDGE_INLINE void WeighValues(const KeyTile& keys, int64_t n_keys, int64_t d, int64_t head_dim, const Vec* weights,
                                 const Vec* rescale, Vec* out_t) {
  Vec sum[N][R];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[n][r] = out_t[n * R + r] * rescale[r];
  int64_t left = n_keys;
  for (const KeySegment* segment = keys.segments; left > 0; ++segment) {
    const int64_t count = segment->count < left ? segment->count : left;
    Multiply<N, R>(segment->v + d, 1, head_dim, weights, count, sum);
    weights += count * R;
    left -= count;
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) out_t[n * R + r] = sum[n][r];
}

template <int R>
void HideInvisible(const RowTile& tile, int64_t position, int64_t n_keys, Vec* scores) {
  IntVec seen[R];  // keys of this tile that each row sees
  int32_t* seen_lanes = reinterpret_cast<int32_t*>(seen);
  for (int lane = 0; lane < R * kLanes; ++lane) {
    const int64_t n = tile.visible_end[lane] - position;
    const int32_t count = (int32_t)(n < 0 ? 0 : n > n_keys ? n_keys : n);
    memcpy(seen_lanes + lane, &count, sizeof(count));
  }
  const Vec hidden = Vec{} - __builtin_inff();
  for (int32_t key = 0; key < n_keys; ++key)
    for (int r = 0; r < R; ++r) scores[key * R + r] = seen[r] > key ? scores[key * R + r] : hidden;
}

// One tile of keys for one tile of rows: scores, online softmax, weighted values. Only the first n_keys are visible.
// `while_scoring` and `while_weighing` fetch what is read next, values in strides that no hardware prefetcher follows.
template <int R>
void AttendTile(const RowTile& tile, int64_t head_dim, const KeyTile& keys, int64_t n_keys, Fetch while_scoring,
                Fetch while_weighing, Vec* scores) {
  Vec* next_scores = scores;
  int64_t left = n_keys;
  for (const KeySegment* segment = keys.segments; left > 0; ++segment) {
    const int64_t count = segment->count < left ? segment->count : left;
    int64_t key = 0;
    for (; key + kBlock <= count; key += kBlock) {
      while_scoring.Rows(kBlock);
      ScoreKeys<kBlock, R>(segment->k + key * head_dim, head_dim, tile.q_t, next_scores + key * R);
    }
    while_scoring.Rows(count - key);
    for (; key < count; ++key) ScoreKeys<1, R>(segment->k + key * head_dim, head_dim, tile.q_t, next_scores + key * R);
    next_scores += count * R;
    left -= count;
  }
  const int64_t position = keys.segments[0].position;
  if (tile.first_visible_end < position + n_keys) HideInvisible<R>(tile, position, n_keys, scores);

  Vec rescale[R];
  for (int r = 0; r < R; ++r) {
    Vec row_max = tile.row_max[r];
    for (int64_t j = 0; j < n_keys; ++j) row_max = Max(row_max, scores[j * R + r]);
    rescale[r] = Exp2(tile.row_max[r] - row_max);
    tile.row_max[r] = row_max;
    Vec row_sum = tile.row_sum[r] * rescale[r];
    for (int64_t j = 0; j < n_keys; ++j) {
      const Vec weight = Exp2(scores[j * R + r] - row_max);
      scores[j * R + r] = weight;
      row_sum += weight;
    }
    tile.row_sum[r] = row_sum;
  }

  const int64_t rows_per_block = while_weighing.tile->n_keys * kBlock / head_dim + 1;
  int64_t d = 0;
  for (; d + kBlock <= head_dim; d += kBlock) {
    while_weighing.Rows(rows_per_block);
    WeighValues<kBlock, R>(keys, n_keys, d, head_dim, scores, rescale, tile.out_t + d * R);
  }
  for (; d < head_dim; ++d) WeighValues<1, R>(keys, n_keys, d, head_dim, scores, rescale, tile.out_t + d * R);
}

void AttendTile(const RowTile& tile, int64_t head_dim, const KeyTile& keys, int64_t n_keys, Fetch while_scoring,
                Fetch while_weighing, Vec* scores) {
  static_assert(kMaxRowVectors <= 3, "one case per tile width");
  switch (tile.row_vectors) {
    case 1: return AttendTile<1>(tile, head_dim, keys, n_keys, while_scoring, while_weighing, scores);
    case 2: return AttendTile<2>(tile, head_dim, keys, n_keys, while_scoring, while_weighing, scores);
    default: return AttendTile<3>(tile, head_dim, keys, n_keys, while_scoring, while_weighing, scores);
  }
}

// All keys of the task, one tile after the other, for all row tiles.
void AttendKeys(const RowTask& task, const RowTile* tiles, int n_tiles, float* dequantized, Vec* scores) {
  const KeyLayout layout = LayoutOf(task.rows.head_dim, task.cache);
  // The visible keys of a tile are counted from its first one: only where nothing is hidden may it have gaps.
  KeyWalk walk{task.ranges, task.ranges + task.n_ranges, 0, task.attn_block == 0};
  KeyTile buffers[3];
  KeyTile nothing;
  nothing.n_segments = 0;
  nothing.n_keys = 0;
  KeyTile *raw = &buffers[0], *next = &buffers[1], *floats = &buffers[2];
  walk.Next(layout, raw);
  while (raw->n_keys > 0) {
    walk.Next(layout, next);
    const KeyTile* keys = raw;
    Fetch while_scoring{raw, true, layout.row_bytes, 0, 0}, while_weighing{next, false, layout.row_bytes, 0, 0};
    if (task.cache != nullptr) {
      ReadTile(layout, *raw, true, dequantized, floats);
      keys = floats;
      while_scoring = {next, false, layout.row_bytes, 0, 0};
      while_weighing = {next, true, layout.row_bytes, 0, 0};
    }
    for (int t = 0; t < n_tiles; ++t) {
      int64_t n_keys = keys->n_keys;
      const int64_t visible = tiles[t].last_visible_end - keys->segments[0].position;
      if (task.attn_block != 0 && visible < n_keys) n_keys = visible;
      if (n_keys <= 0) continue;
      AttendTile(tiles[t], layout.head_dim, *keys, n_keys, while_scoring, while_weighing, scores);
      while_scoring.tile = while_weighing.tile = &nothing;  // for the other row tiles it is near by now
    }
    KeyTile* const read = raw;
    raw = next;
    next = read;
  }
}

// Loads the rows, calls attend_all(tiles, n_tiles, memory, scores) with `bytes` of working memory, stores the results.
template <typename AttendAll>
void AttendRows(const RowTask& task, size_t bytes, AttendAll attend_all) {
  static thread_local Scratch scratch;
  const RowCut cut(task.rows);
  const int64_t head_dim = task.rows.head_dim;
  const size_t vectors = (2 * head_dim + 2) * cut.n_vectors + kTileKeys * kMaxRowVectors;
  const size_t positions = cut.n_vectors * kLanes;
  bytes = Aligned(bytes);
  char* memory =
      scratch.Reserve(bytes + vectors * sizeof(Vec) + positions * sizeof(int64_t) + cut.n_tiles * sizeof(RowTile));

  Vec* next = reinterpret_cast<Vec*>(memory + bytes);
  int64_t* visible_end = reinterpret_cast<int64_t*>(next + vectors);
  RowTile* tiles = reinterpret_cast<RowTile*>(visible_end + positions);
  Vec* scores = next;
  next += kTileKeys * kMaxRowVectors;
  for (int t = 0; t < cut.n_tiles; ++t) {
    RowTile& tile = tiles[t];
    tile.row_vectors = cut.RowVectors(t);
    tile.first_row = task.rows.row_begin + cut.FirstRow(t);
    tile.n_rows = cut.Rows(t);
    tile.q_t = next;
    tile.out_t = tile.q_t + head_dim * tile.row_vectors;
    tile.row_max = tile.out_t + head_dim * tile.row_vectors;
    tile.row_sum = tile.row_max + tile.row_vectors;
    next = tile.row_sum + tile.row_vectors;
    tile.visible_end = visible_end + cut.FirstRow(t);
    LoadRows(task, tile);
  }
  attend_all(tiles, cut.n_tiles, memory, scores);
  for (int t = 0; t < cut.n_tiles; ++t) StoreRows(task, tiles[t]);
}

void Attend(const RowTask& task) {
  if (SuitsFewRows(task)) return AttendWithFewRows(task);
  const size_t bytes = task.cache != nullptr ? TileFloats(task.rows.head_dim) * sizeof(float) : 0;
  AttendRows(task, bytes, [&](const RowTile* tiles, int n_tiles, char* memory, Vec* scores) {
    AttendKeys(task, tiles, n_tiles, reinterpret_cast<float*>(memory), scores);
  });
}

}  // namespace
}  // namespace dlm_edge
