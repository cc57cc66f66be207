// How much of each row's attention falls on each page: a second pass over the keys, once the log-sum-exp is known.
#pragma once

#include "key_tiles.h"
#include "row_tiles.h"

namespace dlm_edge {
namespace {

// shares[r] += sum over the keys of 2^(score - lse)
template <int R>
void AddShares(const KeyTile& keys, int64_t head_dim, const Vec* q_t, const Vec* lse, Vec* shares) {
  Vec sum[R];
  for (int r = 0; r < R; ++r) sum[r] = shares[r];
  auto add = [&](const Vec* scores, int n) {
    for (int i = 0; i < n; ++i)
      for (int r = 0; r < R; ++r) {
        const Vec below = scores[i * R + r] - lse[r];
        sum[r] += Exp2(below > 0.0f ? Vec{} : below);  // rounding may leave a score above its log-sum-exp
      }
  };
  Vec scores[kBlock * R];
  for (int s = 0; s < keys.n_segments; ++s) {
    const KeySegment& segment = keys.segments[s];
    int64_t key = 0;
    for (; key + kBlock <= segment.count; key += kBlock) {
      ScoreKeys<kBlock, R>(segment.k + key * head_dim, head_dim, q_t, scores);
      add(scores, kBlock);
    }
    for (; key < segment.count; ++key) {
      ScoreKeys<1, R>(segment.k + key * head_dim, head_dim, q_t, scores);
      add(scores, 1);
    }
  }
  for (int r = 0; r < R; ++r) shares[r] = sum[r];
}

void AddShares(int row_vectors, const KeyTile& keys, int64_t head_dim, const Vec* q_t, const Vec* lse, Vec* shares) {
  static_assert(kMaxRowVectors <= 3, "one case per tile width");
  switch (row_vectors) {
    case 1: return AddShares<1>(keys, head_dim, q_t, lse, shares);
    case 2: return AddShares<2>(keys, head_dim, q_t, lse, shares);
    default: return AddShares<3>(keys, head_dim, q_t, lse, shares);
  }
}

void Measure(const MassTask& task) {
  static thread_local Scratch scratch;
  const RowCut cut(task.rows);
  const int64_t head_dim = task.rows.head_dim;
  const size_t tile_bytes = Aligned(TileFloats(head_dim) * sizeof(float));
  char* memory = scratch.Reserve(tile_bytes + (head_dim + 2) * cut.n_vectors * sizeof(Vec));
  float* dequantized = reinterpret_cast<float*>(memory);
  Vec* q_t = reinterpret_cast<Vec*>(memory + tile_bytes);  // [n_tiles][head_dim][row_vectors]
  Vec* lse = q_t + head_dim * cut.n_vectors;
  Vec* shares = lse + cut.n_vectors;
  memset(lse, 0, cut.n_vectors * sizeof(Vec));
  memcpy(lse, task.row_lse, cut.n_rows * sizeof(float));
  for (int t = 0; t < cut.n_tiles; ++t)
    LoadQueries(task.rows, task.rows.row_begin + cut.FirstRow(t), cut.Rows(t), cut.RowVectors(t), task.scale_log2,
                q_t + head_dim * cut.FirstVector(t));

  const KeyLayout layout = LayoutOf(head_dim, task.cache);
  KeyTile raw, floats;
  for (int64_t first = 0, last; first < task.n_ranges; first = last) {
    for (last = first + 1; last < task.n_ranges && task.pages[last] == task.pages[first];) ++last;
    memset(shares, 0, cut.n_vectors * sizeof(Vec));
    KeyWalk walk{task.ranges + first, task.ranges + last, 0, true};
    for (walk.Next(layout, &raw); raw.n_keys > 0; walk.Next(layout, &raw)) {
      if (task.cache != nullptr) ReadTile(layout, raw, false, dequantized, &floats);
      for (int t = 0; t < cut.n_tiles; ++t) {
        const int64_t vector = cut.FirstVector(t);
        AddShares(cut.RowVectors(t), task.cache != nullptr ? floats : raw, head_dim, q_t + head_dim * vector,
                  lse + vector, shares + vector);
      }
    }
    float* const mass = task.masses + task.pages[first];
    const float* share = reinterpret_cast<const float*>(shares);
    for (int64_t row = 0; row < cut.n_rows; ++row) *mass = share[row] > *mass ? share[row] : *mass;
  }
}

}  // namespace
}  // namespace dlm_edge
