// How much of each row's attention falls on each page: a second pass over the keys, once the log-sum-exp is known.
#pragma once

#include "key_tiles.h"
#include "row_tiles.h"

namespace dlm_edge {
namespace {

// shares[r] += sum over n keys of 2^(score - lse)
template <int R>
DLM_EDGE_INLINE void AddShares(const Vec* scores, int n, const Vec* lse, Vec* shares) {
  for (int i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r) {
      const Vec below = scores[i * R + r] - lse[r];
      shares[r] += Exp2(below > 0.0f ? Vec{} : below);  // rounding may leave a score above its log-sum-exp
    }
}

template <int R>
void AddShares(const KeyTile& keys, int64_t head_dim, const Vec* q_t, const Vec* lse, Vec* shares) {
  Vec sum[R];
  for (int r = 0; r < R; ++r) sum[r] = shares[r];
  Vec scores[kBlock * R];
  for (int s = 0; s < keys.n_segments; ++s) {
    const KeySegment& segment = keys.segments[s];
    int64_t key = 0;
    for (; key + kBlock <= segment.count; key += kBlock) {
      ScoreKeys<kBlock, R>(segment.k + key * head_dim, head_dim, q_t, scores);
      AddShares<R>(scores, kBlock, lse, sum);
    }
    for (; key < segment.count; ++key) {
      ScoreKeys<1, R>(segment.k + key * head_dim, head_dim, q_t, scores);
      AddShares<R>(scores, 1, lse, sum);
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

// Walks over the pages; add_tile(keys) adds the shares of up to kTileKeys of them to `shares`, [n_vectors].
template <typename AddTile>
void MeasurePages(const MassTask& task, int64_t n_vectors, Vec* shares, AddTile add_tile) {
  const KeyLayout layout = LayoutOf(task.rows.head_dim, task.cache);
  const int64_t n_rows = task.rows.row_end - task.rows.row_begin;
  KeyTile keys;
  for (int64_t first = 0, last; first < task.n_ranges; first = last) {
    for (last = first + 1; last < task.n_ranges && task.pages[last] == task.pages[first];) ++last;
    memset(shares, 0, n_vectors * sizeof(Vec));
    KeyWalk walk{task.ranges + first, task.ranges + last, 0, true};
    for (walk.Next(layout, &keys); keys.n_keys > 0; walk.Next(layout, &keys)) add_tile(keys);
    float* const mass = task.masses + task.pages[first];
    const float* share = reinterpret_cast<const float*>(shares);
    for (int64_t row = 0; row < n_rows; ++row) *mass = share[row] > *mass ? share[row] : *mass;
  }
}

// Rows of one task, ready to be scored.
struct MassRows {
  RowCut cut;
  Vec *q_t, *lse, *shares;  // q_t [n_tiles][head_dim][row_vectors]

  static size_t Bytes(const QueryRows& rows) { return (rows.head_dim + 2) * RowCut(rows).n_vectors * sizeof(Vec); }

  MassRows(const MassTask& task, char* memory) : cut(task.rows), q_t(reinterpret_cast<Vec*>(memory)) {
    lse = q_t + task.rows.head_dim * cut.n_vectors;
    shares = lse + cut.n_vectors;
    memset(lse, 0, cut.n_vectors * sizeof(Vec));
    memcpy(lse, task.row_lse, cut.n_rows * sizeof(float));
    for (int t = 0; t < cut.n_tiles; ++t)
      LoadQueries(task.rows, task.rows.row_begin + cut.FirstRow(t), cut.Rows(t), cut.RowVectors(t), task.scale_log2,
                  q_t + task.rows.head_dim * cut.FirstVector(t));
  }

  // `keys` in float32.
  void Add(const KeyTile& keys, int64_t head_dim) const {
    for (int t = 0; t < cut.n_tiles; ++t) {
      const int64_t vector = cut.FirstVector(t);
      AddShares(cut.RowVectors(t), keys, head_dim, q_t + head_dim * vector, lse + vector, shares + vector);
    }
  }
};

void Measure(const MassTask& task) {
  static thread_local Scratch scratch;
  const int64_t head_dim = task.rows.head_dim;
  const KeyLayout layout = LayoutOf(head_dim, task.cache);
  const size_t tile_bytes = Aligned(TileFloats(head_dim) * sizeof(float));
  char* memory = scratch.Reserve(tile_bytes + MassRows::Bytes(task.rows));
  const MassRows rows(task, memory + tile_bytes);
  MeasurePages(task, rows.cut.n_vectors, rows.shares, [&](const KeyTile& raw) {
    KeyTile floats;
    if (task.cache != nullptr) ReadTile(layout, raw, false, reinterpret_cast<float*>(memory), &floats);
    rows.Add(task.cache != nullptr ? floats : raw, head_dim);
  });
}

}  // namespace
}  // namespace dlm_edge
