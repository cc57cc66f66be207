// The end of QLinear: float32 sums to y.
#pragma once

#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

// sums * row scale + outliers + bias, to y. Blocks of rows have met their scales group by group: linear_panel.h.
DLM_EDGE_INLINE void Finish(const ProductTask& task, int64_t row, int64_t tile, const float* total) {
  const LinearWeight& weight = *task.weight;
  const float* const outliers = task.rounded->outliers + row * weight.n_outliers;
  const float* const outlier_weights = weight.outlier_weights + tile * weight.n_outliers * kTileColumns;
  const int64_t column = tile * kTileColumns;
  const int64_t left = weight.out_features - column;
  alignas(64) float last[kTileColumns] = {};  // a tile that is filled up goes through memory of its own
  const bool is_whole = left >= kTileColumns;
  float* const y = task.y + row * weight.out_features + column;
  const float* bias = weight.bias == nullptr ? nullptr : weight.bias + column;
  if (bias != nullptr && !is_whole) {
    memcpy(last, bias, left * sizeof(float));
    bias = last;
  }
  const float scale = task.rounded->n_blocks == 1 ? task.rounded->scales[row] : 1.0f;
  alignas(64) float out[kTileColumns];
#pragma GCC unroll 4
  for (int v = 0; v < kTileColumns; v += kLanes) {
    Vec values = Load(total + v) * scale;
    if (weight.n_outliers > 0) {
      Vec sum = {};
      for (int64_t j = 0; j < weight.n_outliers; ++j) sum += Load(outlier_weights + j * kTileColumns + v) * outliers[j];
      values += sum;
    }
    if (bias != nullptr) values += Load(bias + v);
    Store(values, is_whole ? y + v : out + v);
  }
  if (!is_whole) memcpy(y, out, left * sizeof(float));
}

// Before the last panel of some rows: the lines that Finish will write, which would otherwise wait for each other.
template <int C>
DLM_EDGE_INLINE void PrefetchOutput(const ProductTask& task, int64_t row, int64_t n_rows, int64_t tile) {
  for (int64_t i = row; i < row + n_rows; ++i)
    for (int c = 0; c < C; ++c)
      __builtin_prefetch(task.y + i * task.weight->out_features + (tile + c) * kTileColumns, 1);
}

}  // namespace
}  // namespace dlm_edge
