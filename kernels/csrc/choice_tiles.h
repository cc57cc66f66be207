// The pages that each query ranks first, a vector of queries at a time: upper bounds of its scores (Quest), then the
// n_pages largest of them by a search for the threshold, bit by bit, which has no branch and needs no sorting.
#pragma once

#include "row_tiles.h"

namespace dlm_edge {
namespace {

constexpr int kTilePages = 16;
constexpr int32_t kLowestRank = INT32_MIN;  // NaN: behind everything, as NumPy sorts it

// An integer that is ordered like the number; -0 equals 0.
DLM_EDGE_INLINE IntVec Rank(Vec value) {
  value = value + 0.0f;
  const IntVec bits = (IntVec)value;
  const IntVec rank = bits ^ ((bits >> 31) & 0x7fffffff);
  return value == value ? rank : IntVec{} + kLowestRank;
}

// The queries' positive parts [head_dim], then their negative parts [head_dim]. NaN is in both.
void LoadSignedQueries(const ChoiceTask& task, int64_t first, int64_t n_rows, int row_vectors, Vec* q_t) {
  const int64_t n = task.rows.head_dim * row_vectors;
  LoadQueries(task.rows, first, n_rows, row_vectors, 1.0f, q_t);
  for (int64_t i = 0; i < n; ++i) {
    q_t[n + i] = q_t[i] > 0.0f ? Vec{} : q_t[i];
    q_t[i] = q_t[i] < 0.0f ? Vec{} : q_t[i];
  }
}

// Up to kTilePages pages' bounds as floats: high [head_dim], then low [head_dim] of each.
void LoadBounds(const ChoiceTask& task, int64_t first, int64_t n, float* bounds) {
  const int64_t dim = task.rows.head_dim;
  for (int64_t row = 2 * first; row < 2 * (first + n); ++row, bounds += dim) {
    const int8_t* from = (row % 2 ? task.low : task.high) + row / 2 * dim;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) Store(SignedBytesToFloats(from + d), bounds + d);
    for (; d < dim; ++d) bounds[d] = from[d];
  }
}

template <int R>
void RankPages(const ChoiceTask& task, const Vec* q_t, float* bounds, IntVec* ranks) {
  const int64_t depth = 2 * task.rows.head_dim;
  Vec scores[kTilePages * R];
  for (int64_t first = 0; first < task.n_valid; first += kTilePages) {
    const int64_t n = task.n_valid - first < kTilePages ? task.n_valid - first : kTilePages;
    __builtin_prefetch(task.high + (first + n) * task.rows.head_dim);
    __builtin_prefetch(task.low + (first + n) * task.rows.head_dim);
    LoadBounds(task, first, n, bounds);
    int64_t page = 0;
    for (; page + kBlock <= n; page += kBlock)
      ScoreKeys<kBlock, R>(bounds + page * depth, depth, q_t, scores + page * R);
    for (; page < n; ++page) ScoreKeys<1, R>(bounds + page * depth, depth, q_t, scores + page * R);
    for (page = 0; page < n; ++page)
      for (int r = 0; r < R; ++r)
        ranks[r * task.n_valid + first + page] = Rank(scores[page * R + r] * task.page_scale[first + page]);
  }
}

// 1 in picked[page] where any of the first n_lanes lanes has the page among its n_pages largest ranks.
void PickLargest(const ChoiceTask& task, const IntVec* ranks, int n_lanes, uint8_t* picked) {
  IntVec threshold = IntVec{} + kLowestRank;
  const int32_t wanted = (int32_t)(task.n_pages < task.n_slots ? task.n_pages : task.n_slots);
  // The largest threshold that at least `wanted` ranks reach; from the lowest one upwards, bit 31 first.
  for (int bit = 31; bit >= 0; --bit) {
    const IntVec higher = threshold ^ (int32_t)(1u << bit);
    IntVec reached[4] = {};
    int64_t page = 0;
    for (; page + 4 <= task.n_valid; page += 4)
      for (int i = 0; i < 4; ++i) reached[i] -= (IntVec)(ranks[page + i] >= higher);
    for (; page < task.n_valid; ++page) reached[0] -= (IntVec)(ranks[page] >= higher);
    threshold = reached[0] + reached[1] + reached[2] + reached[3] >= wanted ? higher : threshold;
  }
  IntVec above = {};
  for (int64_t page = 0; page < task.n_valid; ++page) above -= (IntVec)(ranks[page] > threshold);
  // Slots without keys count as -infinity: they come before NaN, but are never picked.
  const int32_t n_empty = (int32_t)(task.n_slots - task.n_valid);
  IntVec left = wanted - above - (threshold == kLowestRank ? IntVec{} + n_empty : IntVec{});
  IntVec lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i < n_lanes ? -1 : 0;
  for (int64_t page = 0; page < task.n_valid; ++page) {
    const IntVec equal = (IntVec)(ranks[page] == threshold) & (IntVec)(left > 0);
    left += equal;
    const IntVec chosen = ((IntVec)(ranks[page] > threshold) | equal) & lane;
    int64_t words[sizeof(IntVec) / sizeof(int64_t)], any = 0;
    memcpy(words, &chosen, sizeof words);
    for (const int64_t word : words) any |= word;
    picked[page] |= any != 0;
  }
}

// The same for one list of ranks, with lanes along the pages; `ranks` is [n_valid], filled up to whole vectors.
void PickLargest(const ChoiceTask& task, int32_t* ranks) {
  const int64_t n_valid = task.n_valid, n_vectors = (n_valid + kLanes - 1) / kLanes;
  uint8_t* const picked = task.picked;
  const int32_t wanted = (int32_t)(task.n_pages < task.n_slots ? task.n_pages : task.n_slots);
  const IntVec* const vectors = reinterpret_cast<const IntVec*>(ranks);
  auto count = [=](int32_t least) {
    IntVec reached = {};
    for (int64_t i = 0; i < n_vectors; ++i) reached -= (IntVec)(vectors[i] >= least);
    int32_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += reached[lane];
    return sum;
  };
  for (int64_t page = n_valid; page < n_vectors * kLanes; ++page) ranks[page] = kLowestRank;
  uint32_t bits = 0x80000000u;
  int32_t n_reached = -1;
  for (int bit = 31; bit >= 0 && n_reached != wanted; --bit) {
    const uint32_t higher = bits ^ 1u << bit;
    const int32_t n = count((int32_t)higher);
    if (n < wanted) continue;
    bits = higher;
    n_reached = n;
  }
  const int32_t threshold = (int32_t)bits;
  if (n_reached == wanted) {  // no ties
    for (int64_t page = 0; page < n_valid; ++page) picked[page] = ranks[page] >= threshold;
    return;
  }
  const int32_t n_empty = threshold == kLowestRank ? (int32_t)(task.n_slots - n_valid) : 0;
  int32_t left = wanted - n_empty - (threshold == INT32_MAX ? 0 : count(threshold + 1));
  for (int64_t page = 0; page < n_valid; ++page) {
    const bool is_equal = ranks[page] == threshold && left > 0;
    left -= is_equal;
    picked[page] = ranks[page] > threshold || is_equal;
  }
}

void Choose(const ChoiceTask& task) {
  static thread_local Scratch scratch;
  if (task.n_valid == 0) return;
  memset(task.picked, 0, task.n_valid);
  const RowCut cut(task.rows);
  const int64_t dim = task.rows.head_dim;
  const size_t bound_bytes = Aligned(kTilePages * 2 * dim * sizeof(float));
  char* memory = scratch.Reserve(bound_bytes + (2 * dim + task.n_valid) * kMaxRowVectors * sizeof(Vec));
  float* bounds = reinterpret_cast<float*>(memory);
  IntVec* ranks = reinterpret_cast<IntVec*>(memory + bound_bytes);  // [row_vectors][n_valid]
  Vec* q_t = reinterpret_cast<Vec*>(ranks + kMaxRowVectors * task.n_valid);
  const IntVec first_rank = Rank(Vec{} + __builtin_inff());

  if (task.masses != nullptr) {
    int32_t* const of_pages = reinterpret_cast<int32_t*>(ranks);
    int64_t page = 0;
    for (; page + kLanes <= task.n_valid; page += kLanes) ranks[page / kLanes] = Rank(Load(task.masses + page));
    for (; page < task.n_valid; ++page) of_pages[page] = Rank(Vec{} + task.masses[page])[0];
    const uint8_t* const forced = task.forced;
    const int32_t before_all = first_rank[0];
    const int64_t n_valid = task.n_valid;
    for (page = 0; page < n_valid; ++page) of_pages[page] = forced[page] ? before_all : of_pages[page];
    return PickLargest(task, of_pages);
  }
  for (int t = 0; t < cut.n_tiles; ++t) {
    const int row_vectors = cut.RowVectors(t);
    LoadSignedQueries(task, task.rows.row_begin + cut.FirstRow(t), cut.Rows(t), row_vectors, q_t);
    static_assert(kMaxRowVectors <= 3, "one case per tile width");
    if (row_vectors == 1) RankPages<1>(task, q_t, bounds, ranks);
    if (row_vectors == 2) RankPages<2>(task, q_t, bounds, ranks);
    if (row_vectors == 3) RankPages<3>(task, q_t, bounds, ranks);
    for (int r = 0; r < row_vectors; ++r) {
      const int64_t n_lanes = cut.Rows(t) - r * kLanes;
      IntVec* const of_vector = ranks + r * task.n_valid;
      for (int64_t page = 0; page < task.n_valid; ++page)
        if (task.forced[page]) of_vector[page] = first_rank;
      PickLargest(task, of_vector, (int)(n_lanes < kLanes ? n_lanes : kLanes), task.picked);
    }
  }
}

}  // namespace
}  // namespace dlm_edge
