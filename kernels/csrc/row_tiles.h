// Tiles of query rows: loading them transposed, and storing what was accumulated.
//
// Everything is kept transposed: lanes run along rows (queries), so that scores, softmax and output are plain
// vertical vector arithmetic, any head_dim works without remainders, and keys and values are read as scalars
// from where they lie, without packing.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr float kNothingSeen = -1e30f;  // below every real score, and finite: differences of it are not NaN

// R vectors of rows and what has been accumulated for them.
struct RowTile {
  Vec* q_t;              // [head_dim][R], scaled
  Vec* out_t;            // [head_dim][R]
  Vec* row_max;          // [R]
  Vec* row_sum;          // [R]
  int64_t* visible_end;  // [R * kLanes]
  int64_t first_row, n_rows;
  int64_t first_visible_end, last_visible_end;
  int row_vectors;
};

// How `n_rows` rows are cut into tiles: the same number of vectors in each, give or take one.
struct RowCut {
  int64_t n_rows, n_vectors;
  int n_tiles;

  explicit RowCut(const QueryRows& rows)
      : n_rows(rows.row_end - rows.row_begin),
        n_vectors((n_rows + kLanes - 1) / kLanes),
        n_tiles((int)((n_vectors + kMaxRowVectors - 1) / kMaxRowVectors)) {}
  int64_t FirstVector(int tile) const { return n_vectors * tile / n_tiles; }
  int64_t FirstRow(int tile) const { return FirstVector(tile) * kLanes; }
  int RowVectors(int tile) const { return (int)(FirstVector(tile + 1) - FirstVector(tile)); }
  int64_t Rows(int tile) const {
    const int64_t left = n_rows - FirstRow(tile), room = (int64_t)RowVectors(tile) * kLanes;
    return left < room ? left : room;
  }
};

DLM_EDGE_INLINE int64_t QueryIndex(const QueryRows& rows, int64_t row) {
  const int64_t i = row / rows.group;
  return rows.chosen != nullptr ? rows.chosen[i] : i;
}

DLM_EDGE_INLINE const float* Query(const QueryRows& rows, int64_t row) {
  return rows.q + (row % rows.group * rows.q_len + QueryIndex(rows, row)) * rows.head_dim;
}

// Rows [first, first + n_rows) times `scale`, transposed; the lanes past the last row are 0.
void LoadQueries(const QueryRows& rows, int64_t first, int64_t n_rows, int row_vectors, float scale, Vec* q_t) {
  const int64_t width = row_vectors * kLanes;
  memset(q_t, 0, rows.head_dim * width * sizeof(float));
  float* out = reinterpret_cast<float*>(q_t);
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* q = Query(rows, first + row);
    for (int64_t d = 0; d < rows.head_dim; ++d) out[d * width + row] = q[d] * scale;
  }
}

void LoadRows(const RowTask& task, RowTile& tile) {
  const int64_t width = tile.row_vectors * kLanes;
  LoadQueries(task.rows, tile.first_row, tile.n_rows, tile.row_vectors, task.scale_log2, tile.q_t);
  memset(tile.out_t, 0, task.rows.head_dim * width * sizeof(float));
  for (int r = 0; r < tile.row_vectors; ++r) {
    tile.row_max[r] = Vec{} + kNothingSeen;
    tile.row_sum[r] = Vec{};
  }
  for (int64_t row = 0; row < width; ++row) {
    // Lanes past the last row repeat it; they are never written out.
    const int64_t in_task = tile.first_row + (row < tile.n_rows ? row : tile.n_rows - 1);
    tile.visible_end[row] =
        task.attn_block ? VisibleEnd(task.start + QueryIndex(task.rows, in_task), task.attn_block) : INT64_MAX;
  }
  tile.first_visible_end = tile.visible_end[0];
  tile.last_visible_end = tile.visible_end[width - 1];
}

void StoreRows(const RowTask& task, const RowTile& tile) {
  const int64_t width = tile.row_vectors * kLanes, dim = task.rows.head_dim;
  const int64_t task_rows = task.rows.row_end - task.rows.row_begin, offset = tile.first_row - task.rows.row_begin;
  const float* out_t = reinterpret_cast<const float*>(tile.out_t);
  const float* row_max = reinterpret_cast<const float*>(tile.row_max);
  const float* row_sum = reinterpret_cast<const float*>(tile.row_sum);
  for (int64_t row = 0; row < tile.n_rows; ++row) {
    float* out;
    float factor = 1.0f;
    if (task.partial != nullptr) {
      out = task.partial + (offset + row) * dim;
      task.partial[task_rows * dim + offset + row] = row_max[row];
      task.partial[task_rows * dim + task_rows + offset + row] = row_sum[row];
    } else {
      const int64_t g = (tile.first_row + row) % task.rows.group;
      out = task.out + QueryIndex(task.rows, tile.first_row + row) * task.out_stride + g * dim;
      factor = 1.0f / row_sum[row];
    }
    for (int64_t d = 0; d < dim; ++d) out[d] = out_t[d * width + row] * factor;
  }
}

}  // namespace
}  // namespace dlm_edge
