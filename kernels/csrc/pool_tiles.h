// Attention weights summed over blocks of keys and all rows of a task: a second pass, once the log-sum-exp is known.
#pragma once

#include "mass_tiles.h"

namespace dlm_edge {
namespace {

void Pool(const PoolTask& task) {
  static thread_local Scratch scratch;
  const RowCut cut(task.rows);
  const int64_t head_dim = task.rows.head_dim;
  Vec* q_t = reinterpret_cast<Vec*>(scratch.Reserve((head_dim + 2) * cut.n_vectors * sizeof(Vec)));
  Vec* lse = q_t + head_dim * cut.n_vectors;
  Vec* shares = lse + cut.n_vectors;
  memset(lse, 0, cut.n_vectors * sizeof(Vec));
  memcpy(lse, task.row_lse, cut.n_rows * sizeof(float));
  for (int t = 0; t < cut.n_tiles; ++t)
    LoadQueries(task.rows, task.rows.row_begin + cut.FirstRow(t), cut.Rows(t), cut.RowVectors(t), task.scale_log2,
                q_t + head_dim * cut.FirstVector(t));

  const KeyLayout layout = LayoutOf(head_dim, nullptr);
  KeyTile keys;
  float* sum = task.sums;
  for (int64_t first = 0; first < task.n_keys; first += task.block_size) {
    const int64_t left = task.n_keys - first, count = left < task.block_size ? left : task.block_size;
    const float* const k = task.k + first * head_dim;
    const KeyRange range{k, k, first, count};  // values are not read
    memset(shares, 0, cut.n_vectors * sizeof(Vec));
    KeyWalk walk{&range, &range + 1, 0, true};
    for (walk.Next(layout, &keys); keys.n_keys > 0; walk.Next(layout, &keys))
      for (int t = 0; t < cut.n_tiles; ++t) {
        const int64_t vector = cut.FirstVector(t);
        AddShares(cut.RowVectors(t), keys, head_dim, q_t + head_dim * vector, lse + vector, shares + vector);
      }
    const float* share = reinterpret_cast<const float*>(shares);
    *sum = 0.0f;
    for (int64_t row = 0; row < cut.n_rows; ++row) *sum += share[row];
    ++sum;
  }
}

}  // namespace
}  // namespace dlm_edge
