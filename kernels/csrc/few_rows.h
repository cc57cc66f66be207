// Attention with lanes along the head dimension: for rows that do not fill vectors, or too few keys to make up for
// transposing rows and results as attention_tiles.h does. A row costs the same in any company, but each of its scores
// is a sum over lanes. Up to kFewRows rows are taken at a time, so that keys and values stay in registers for them.
#pragma once

#include "key_tiles.h"
#include "lane_sums.h"
#include "row_tiles.h"

namespace dlm_edge {
namespace {

constexpr int kFewRows = kLanes == 16 ? 6 : 2;  // times 4 keys, or 4 vectors of values, in registers
constexpr int kFewKeys = 4;

// Some rows and what has been accumulated for them.
struct FewRows {
  const float* q;   // [n_rows, head_dim], scaled
  float* weighted;  // [n_rows, head_dim]
  float* scores;    // [n_rows, kTileKeys], then the softmax weights
  Vec* row_sum;     // [n_rows], to be summed over the lanes
  float* row_max;   // [n_rows]
  int64_t n_rows, head_dim;
};

DLM_EDGE_INLINE int64_t GroupsOf(int64_t n_rows) { return (n_rows + kFewRows - 1) / kFewRows; }

// Calls Body<N>::Run(rows, first, group, ...) for all rows in groups of N <= kFewRows, as equal as can be.
template <template <int> class Body, typename... Arguments>
DLM_EDGE_INLINE void ForGroups(const FewRows& rows, const Arguments&... arguments) {
  const int64_t n_groups = GroupsOf(rows.n_rows);
  for (int64_t group = 0; group < n_groups; ++group) {
    const int64_t first = rows.n_rows * group / n_groups;
    switch (rows.n_rows * (group + 1) / n_groups - first) {
      case 1: Body<1>::Run(rows, first, group, arguments...); break;
      case 2: Body<2>::Run(rows, first, group, arguments...); break;
#if DLM_EDGE_LANES == 16
      case 3: Body<3>::Run(rows, first, group, arguments...); break;
      case 4: Body<4>::Run(rows, first, group, arguments...); break;
      case 5: Body<5>::Run(rows, first, group, arguments...); break;
      case 6: Body<6>::Run(rows, first, group, arguments...); break;
#endif
    }
  }
}

template <int K, int N>
DLM_EDGE_INLINE void DotProducts(const FewRows& rows, int64_t first, const float* k, Vec (&sum)[K][N]) {
  const float* q = rows.q + first * rows.head_dim;
  for (int64_t d = 0; d < rows.head_dim; d += kLanes, k += kLanes, q += kLanes) {
    Vec key[K];
#pragma GCC unroll 4
    for (int i = 0; i < K; ++i) key[i] = Load(k + i * rows.head_dim);
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
      const Vec query = *(const Vec*)(q + n * rows.head_dim);
#pragma GCC unroll 4
      for (int i = 0; i < K; ++i) sum[i][n] += query * key[i];
    }
  }
}

template <int N>
struct ScoreFourKeys {
  static DLM_EDGE_INLINE void Run(const FewRows& rows, int64_t first, int64_t group, const float* k, int64_t at,
                                  const LineFetch& fetch) {
    for (int64_t key = at; key < at + kFewKeys; ++key) fetch.Part(key, group, GroupsOf(rows.n_rows));
    Vec sum[kFewKeys][N] = {};
    DotProducts<kFewKeys, N>(rows, first, k, sum);
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n)
      *(LooseQuad*)(rows.scores + (first + n) * kTileKeys + at) =
          SumLanes(Fold(sum[0][n]), Fold(sum[1][n]), Fold(sum[2][n]), Fold(sum[3][n]));
  }
};

template <int N>
struct ScoreOneKey {
  static DLM_EDGE_INLINE void Run(const FewRows& rows, int64_t first, int64_t group, const float* k, int64_t at,
                                  const LineFetch& fetch) {
    fetch.Part(at, group, GroupsOf(rows.n_rows));
    Vec sum[1][N] = {};
    DotProducts<1, N>(rows, first, k, sum);
    for (int n = 0; n < N; ++n) rows.scores[(first + n) * kTileKeys + at] = SumLanes(sum[0][n]);
  }
};

// weighted[row][d ...] = rescale * weighted[row][d ...] + sum_key weights[row][key] * v[key][d ...], W vectors of it.
// rescale null: nothing has been accumulated yet.
template <int N, int W>
DLM_EDGE_INLINE void AddValues(const FewRows& rows, int64_t first, int64_t group, const KeyTile& keys, int64_t d,
                               const float* rescale, const LineFetch& fetch) {
  // As many parts as there are calls for a tile.
  const int64_t n_groups = GroupsOf(rows.n_rows), n_parts = (rows.head_dim / kLanes + W - 1) / W * n_groups;
  const int64_t part = d / (W * kLanes) * n_groups + group;
  const int64_t first_line = fetch.n_lines * part / n_parts, last_line = fetch.n_lines * (part + 1) / n_parts;
  const char* const* next_row = fetch.rows;
  Vec sum[N][W];
  float* const weighted = rows.weighted + first * rows.head_dim + d;
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w)
      sum[n][w] = rescale ? Load(weighted + n * rows.head_dim + w * kLanes) * rescale[first + n] : Vec{};
  const float* weight = rows.scores + first * kTileKeys;
  for (int s = 0; s < keys.n_segments; ++s) {
    const float* v = keys.segments[s].v + d;
    for (int64_t key = 0; key < keys.segments[s].count; ++key, v += rows.head_dim, ++weight, ++next_row) {
      for (int64_t line = first_line; line < last_line; ++line) __builtin_prefetch(*next_row + 64 * line, 0, 2);
      Vec value[W];
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) value[w] = Load(v + w * kLanes);
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const float its_weight = weight[n * kTileKeys];
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) sum[n][w] += its_weight * value[w];
      }
    }
  }
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) Store(sum[n][w], weighted + n * rows.head_dim + w * kLanes);
}

template <int N>
struct AddFourVectors {
  static DLM_EDGE_INLINE void Run(const FewRows& rows, int64_t first, int64_t group, const KeyTile& keys, int64_t d,
                                  const float* rescale, const LineFetch& fetch) {
    AddValues<N, 4>(rows, first, group, keys, d, rescale, fetch);
  }
};

template <int N>
struct AddOneVector {
  static DLM_EDGE_INLINE void Run(const FewRows& rows, int64_t first, int64_t group, const KeyTile& keys, int64_t d,
                                  const float* rescale, const LineFetch& fetch) {
    AddValues<N, 1>(rows, first, group, keys, d, rescale, fetch);
  }
};

// Scores to softmax weights; `rescale` [n_rows]: what the results so far are to be multiplied by.
void WeighKeys(const FewRows& rows, int64_t n_keys, float* rescale) {
  const int64_t width = (n_keys + kLanes - 1) / kLanes;
  for (int64_t row = 0; row < rows.n_rows; ++row) {
    float* const scores = rows.scores + row * kTileKeys;
    for (int64_t key = n_keys; key < width * kLanes; ++key) scores[key] = -__builtin_inff();
    Vec* const of_row = reinterpret_cast<Vec*>(scores);
    Vec largest = of_row[0];
    for (int64_t i = 1; i < width; ++i) largest = Max(largest, of_row[i]);
    float row_max = rows.row_max[row];
    for (int lane = 0; lane < kLanes; ++lane) row_max = row_max > largest[lane] ? row_max : largest[lane];
    const Vec factor = Exp2(Vec{} + (rows.row_max[row] - row_max));
    Vec sum = rows.row_sum[row] * factor;
    for (int64_t i = 0; i < width; ++i) sum += of_row[i] = Exp2(of_row[i] - row_max);
    rescale[row] = factor[0];
    rows.row_max[row] = row_max;
    rows.row_sum[row] = sum;
  }
}

// One tile of keys, all of them visible to all rows.
void AttendFewRows(const FewRows& rows, const KeyTile& keys, const LineFetch& while_scoring,
                   const LineFetch& while_weighing, bool is_first, float* rescale) {
  int64_t at = 0;
  for (int s = 0; s < keys.n_segments; ++s) {
    const float* k = keys.segments[s].k;
    int64_t left = keys.segments[s].count;
    for (; left >= kFewKeys; left -= kFewKeys, at += kFewKeys, k += kFewKeys * rows.head_dim)
      ForGroups<ScoreFourKeys>(rows, k, at, while_scoring);
    for (; left > 0; --left, ++at, k += rows.head_dim) ForGroups<ScoreOneKey>(rows, k, at, while_scoring);
  }
  WeighKeys(rows, keys.n_keys, rescale);
  if (is_first) rescale = nullptr;
  int64_t d = 0;
  for (; d + 4 * kLanes <= rows.head_dim; d += 4 * kLanes)
    ForGroups<AddFourVectors>(rows, keys, d, rescale, while_weighing);
  for (; d < rows.head_dim; d += kLanes) ForGroups<AddOneVector>(rows, keys, d, rescale, while_weighing);
}

bool SuitsFewRows(const RowTask& task) {
  if (task.rows.head_dim % kLanes != 0 || task.n_ranges == 0) return false;
  const int64_t n_rows = task.rows.row_end - task.rows.row_begin, padded = (n_rows + kLanes - 1) / kLanes * kLanes;
  int64_t n_keys = 0;
  for (int64_t i = 0; i < task.n_ranges; ++i) n_keys += task.ranges[i].count;
  const KeyRange& last = task.ranges[task.n_ranges - 1];
  if (task.attn_block != 0 && VisibleEnd(task.start + QueryIndex(task.rows, task.rows.row_begin), task.attn_block) <
                                  last.position + last.count)
    return false;
  // Transposing a row and its result takes the time of about 12 keys, sums over lanes an eighth of a score's.
  return 8 * padded * (n_keys + 12) > 9 * n_rows * n_keys;
}

void AttendAllKeys(const RowTask& task, const FewRows& rows, float* dequantized, float* rescale) {
  const KeyLayout layout = LayoutOf(rows.head_dim, task.cache);
  KeyWalk walk{task.ranges, task.ranges + task.n_ranges, 0, true};
  KeyTile buffers[3];
  KeyTile *raw = &buffers[0], *next = &buffers[1], *floats = &buffers[2];
  LineFetch while_scoring, while_weighing;
  walk.Next(layout, raw);
  while_scoring.Aim(*raw, false, layout.row_bytes);
  for (int64_t key = 0; key < raw->n_keys; ++key) while_scoring.Part(key, 0, 1);
  for (bool is_first = true; raw->n_keys > 0;) {
    walk.Next(layout, next);
    const bool is_coded = task.cache != nullptr;
    if (is_coded) ReadTile(layout, *raw, true, dequantized, floats);
    while_scoring.Aim(is_coded ? *next : *raw, !is_coded, layout.row_bytes);
    while_weighing.Aim(*next, is_coded, layout.row_bytes);
    AttendFewRows(rows, is_coded ? *floats : *raw, while_scoring, while_weighing, is_first, rescale);
    is_first = false;
    KeyTile* const read = raw;
    raw = next;
    next = read;
  }
}

void AttendWithFewRows(const RowTask& task) {
  static thread_local Scratch scratch;
  const int64_t dim = task.rows.head_dim, n_rows = task.rows.row_end - task.rows.row_begin;
  const size_t tile_floats = task.cache != nullptr ? TileFloats(dim) : 0;
  const size_t row_floats = n_rows * (2 * dim + kTileKeys + kLanes) + 2 * n_rows;
  float* const memory = reinterpret_cast<float*>(scratch.Reserve((tile_floats + row_floats) * sizeof(float)));
  float* const q = memory + tile_floats;
  float* const scores = q + n_rows * dim;
  float* const row_sum = scores + n_rows * kTileKeys;
  float* const results = row_sum + n_rows * kLanes;
  float* const row_max = results + n_rows * dim;
  float* const weighted = task.partial != nullptr ? task.partial : results;
  const FewRows rows{q, weighted, scores, reinterpret_cast<Vec*>(row_sum), row_max, n_rows, dim};
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* const from = Query(task.rows, task.rows.row_begin + row);
    for (int64_t d = 0; d < dim; ++d) q[row * dim + d] = from[d] * task.scale_log2;
    row_max[row] = kNothingSeen;
    rows.row_sum[row] = Vec{};
  }
  AttendAllKeys(task, rows, memory, row_max + n_rows);
  for (int64_t row = 0; row < n_rows; ++row) {
    const float sum = SumLanes(rows.row_sum[row]);
    if (task.partial != nullptr) {
      task.partial[n_rows * dim + row] = row_max[row];
      task.partial[n_rows * dim + n_rows + row] = sum;
      continue;
    }
    const int64_t in_all = task.rows.row_begin + row;
    float* const out = task.out + QueryIndex(task.rows, in_all) * task.out_stride + in_all % task.rows.group * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] = results[row * dim + d] * (1.0f / sum);
  }
}

}  // namespace
}  // namespace dlm_edge
