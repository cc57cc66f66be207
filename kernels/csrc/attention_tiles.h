// The inner loops of PrefixBlockAttention, compiled once per vector width (attention_avx512.cpp and its siblings
// set the three constants below and include this file). Layouts are in attention.h and row_task.h.
//
// Everything is kept transposed: lanes run along rows (queries), so that scores, softmax and output are plain
// vertical vector arithmetic, any head_dim works without remainders, and keys and values are read as scalars
// from where they lie, without packing:
//     scores[key][row] = sum_d    k[key][d] * q^T[d][row]
//     output[d][row]   = sum_key  v[key][d] * weights[key][row]
// Both are one register-blocked product, Multiply. The softmax is the online one, in base 2.
// Like row_task.h, this file includes C headers only.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "row_task.h"

#if !defined(DLM_EDGE_LANES) || !defined(DLM_EDGE_MAX_ROW_VECTORS) || !defined(DLM_EDGE_BLOCK)
#error "include this file from attention_<variant>.cpp"
#endif

namespace dlm_edge {
namespace {

constexpr int kLanes = DLM_EDGE_LANES;
constexpr int kMaxRowVectors = DLM_EDGE_MAX_ROW_VECTORS;
constexpr int kBlock = DLM_EDGE_BLOCK;  // keys (or head dims) in one register block
constexpr int kTileKeys = 64;
constexpr float kNothingSeen = -1e30f;  // below every real score, and finite: differences of it are not NaN

typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes), may_alias));

#define DLM_EDGE_INLINE inline __attribute__((always_inline))

DLM_EDGE_INLINE Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error below 2e-7; exactly 0 below -126. NaN stays NaN.
DLM_EDGE_INLINE Vec Exp2(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec shifted = x + 12582912.0f;
  const Vec f = x - (shifted - 12582912.0f);
  const Vec power = (Vec)(((IntVec)shifted + (127 - 0x4B400000)) << 23);
  // Minimax polynomial of 2^f on [-0.5, 0.5], relative error 2e-9 before rounding.
  Vec p = 0.00015345800784416497f * f + 0.0013399930903688073f;
  p = p * f + 0.009618489071726799f;
  p = p * f + 0.05550328642129898f;
  p = p * f + 0.24022646248340607f;
  p = p * f + 0.6931471824645996f;
  p = p * f + 1.0f;
  return x < -126.0f ? Vec{} : p * power;
}

// sum[n][r] += sum_k a[n * stride_n + k * stride_k] * b[k][r]: N * R accumulators that stay in registers.
template <int N, int R>
DLM_EDGE_INLINE void Multiply(const float* a, ptrdiff_t stride_n, ptrdiff_t stride_k, const Vec* b, int64_t depth,
                              Vec (&sum)[N][R]) {
  for (int64_t k = 0; k < depth; ++k, a += stride_k, b += R) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const float scalar = a[n * stride_n];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[n][r] += scalar * b[r];
    }
  }
}

// Into the nearest cache. Harmless past the end of an array.
DLM_EDGE_INLINE void Prefetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}

// R vectors of rows and what has been accumulated for them.
struct RowTile {
  Vec* q_t;      // [head_dim][R], scaled
  Vec* out_t;    // [head_dim][R]
  Vec* row_max;  // [R]
  Vec* row_sum;  // [R]
  int64_t* visible_end;  // [R * kLanes]
  int64_t first_row, n_rows;
  int64_t first_visible_end, last_visible_end;
  int row_vectors;
};

template <int N, int R>
DLM_EDGE_INLINE void ScoreKeys(const float* k, int64_t head_dim, const Vec* q_t, Vec* scores) {
  Vec sum[N][R] = {};
  Multiply<N, R>(k, head_dim, 1, q_t, head_dim, sum);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) scores[n * R + r] = sum[n][r];
}

template <int N, int R>
DLM_EDGE_INLINE void WeighValues(const float* v, int64_t head_dim, const Vec* weights, int64_t n_keys,
                                 const Vec* rescale, Vec* out_t) {
  Vec sum[N][R];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[n][r] = out_t[n * R + r] * rescale[r];
  Multiply<N, R>(v, 1, head_dim, weights, n_keys, sum);
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

// One tile of keys for one tile of rows: scores, online softmax, weighted values.
template <int R>
void AttendTile(const RowTile& tile, int64_t head_dim, const float* k, const float* v, int64_t position,
                int64_t n_keys, Vec* scores) {
  // The values are read in strides that no hardware prefetcher follows well, so they are fetched while the keys
  // are worked on, and the next keys while the values are.
  int64_t key = 0;
  for (; key + kBlock <= n_keys; key += kBlock) {
    Prefetch(v + key * head_dim, kBlock * head_dim);
    ScoreKeys<kBlock, R>(k + key * head_dim, head_dim, tile.q_t, scores + key * R);
  }
  for (; key < n_keys; ++key) ScoreKeys<1, R>(k + key * head_dim, head_dim, tile.q_t, scores + key * R);
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

  int64_t d = 0;
  for (; d + kBlock <= head_dim; d += kBlock) {
    Prefetch(k + n_keys * head_dim + n_keys * d, n_keys * kBlock);
    WeighValues<kBlock, R>(v + d, head_dim, scores, n_keys, rescale, tile.out_t + d * R);
  }
  for (; d < head_dim; ++d) WeighValues<1, R>(v + d, head_dim, scores, n_keys, rescale, tile.out_t + d * R);
}

void AttendTile(const RowTile& tile, int64_t head_dim, const float* k, const float* v, int64_t position,
                int64_t n_keys, Vec* scores) {
  static_assert(kMaxRowVectors <= 3, "one case per tile width");
  switch (tile.row_vectors) {
    case 1: return AttendTile<1>(tile, head_dim, k, v, position, n_keys, scores);
    case 2: return AttendTile<2>(tile, head_dim, k, v, position, n_keys, scores);
    default: return AttendTile<3>(tile, head_dim, k, v, position, n_keys, scores);
  }
}

void LoadRows(const RowTask& task, RowTile& tile) {
  const int64_t width = tile.row_vectors * kLanes;
  memset(tile.q_t, 0, task.head_dim * width * sizeof(float));
  memset(tile.out_t, 0, task.head_dim * width * sizeof(float));
  float* q_t = reinterpret_cast<float*>(tile.q_t);
  for (int r = 0; r < tile.row_vectors; ++r) {
    tile.row_max[r] = Vec{} + kNothingSeen;
    tile.row_sum[r] = Vec{};
  }
  for (int64_t row = 0; row < width; ++row) {
    // Lanes past the last row repeat it, with q = 0; they are never written out.
    const int64_t in_task = tile.first_row + (row < tile.n_rows ? row : tile.n_rows - 1);
    const int64_t i = in_task / task.group, g = in_task % task.group;
    tile.visible_end[row] = VisibleEnd(task.start + i, task.attn_block);
    if (row >= tile.n_rows) continue;
    const float* q = task.q + (g * task.q_len + i) * task.head_dim;
    for (int64_t d = 0; d < task.head_dim; ++d) q_t[d * width + row] = q[d] * task.scale_log2;
  }
  tile.first_visible_end = tile.visible_end[0];
  tile.last_visible_end = tile.visible_end[width - 1];
}

void StoreRows(const RowTask& task, const RowTile& tile) {
  const int64_t width = tile.row_vectors * kLanes, dim = task.head_dim;
  const int64_t task_rows = task.row_end - task.row_begin, offset = tile.first_row - task.row_begin;
  const float* out_t = reinterpret_cast<const float*>(tile.out_t);
  const float* row_max = reinterpret_cast<const float*>(tile.row_max);
  const float* row_sum = reinterpret_cast<const float*>(tile.row_sum);
  for (int64_t row = 0; row < tile.n_rows; ++row) {
    const int64_t i = (tile.first_row + row) / task.group, g = (tile.first_row + row) % task.group;
    float* out = task.out + i * task.out_stride + g * dim;
    float factor = 1.0f / row_sum[row];
    if (task.partial != nullptr) {
      out = task.partial + (offset + row) * dim;
      factor = 1.0f;
      task.partial[task_rows * dim + offset + row] = row_max[row];
      task.partial[task_rows * dim + task_rows + offset + row] = row_sum[row];
    }
    for (int64_t d = 0; d < dim; ++d) out[d] = out_t[d * width + row] * factor;
  }
}

// Working memory of one thread, aligned for the widest vectors; it grows and is freed with the thread.
struct Scratch {
  char* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(memory); }
  char* Reserve(size_t wanted) {
    if (wanted > bytes) {
      free(memory);
      bytes = (wanted + 63) / 64 * 64;
      if (posix_memalign(reinterpret_cast<void**>(&memory), 64, bytes) != 0) abort();
    }
    return memory;
  }
};

void Run(const RowTask& task) {
  static thread_local Scratch scratch;
  const int64_t n_rows = task.row_end - task.row_begin;
  const int64_t n_vectors = (n_rows + kLanes - 1) / kLanes;
  const int n_tiles = (int)((n_vectors + kMaxRowVectors - 1) / kMaxRowVectors);
  const size_t vectors = (2 * task.head_dim + 2) * n_vectors + kTileKeys * kMaxRowVectors;
  const size_t positions = n_vectors * kLanes;
  char* memory = scratch.Reserve(vectors * sizeof(Vec) + positions * sizeof(int64_t) + n_tiles * sizeof(RowTile));

  Vec* next = reinterpret_cast<Vec*>(memory);
  Vec* scores = next;
  next += kTileKeys * kMaxRowVectors;
  int64_t* visible_end = reinterpret_cast<int64_t*>(memory + vectors * sizeof(Vec));
  RowTile* tiles = reinterpret_cast<RowTile*>(visible_end + positions);
  for (int t = 0; t < n_tiles; ++t) {
    const int64_t first = n_vectors * t / n_tiles, last = n_vectors * (t + 1) / n_tiles;
    RowTile& tile = tiles[t];
    tile.row_vectors = (int)(last - first);
    tile.first_row = task.row_begin + first * kLanes;
    tile.n_rows = n_rows - first * kLanes < tile.row_vectors * kLanes ? n_rows - first * kLanes
                                                                       : (int64_t)tile.row_vectors * kLanes;
    tile.q_t = next;
    tile.out_t = tile.q_t + task.head_dim * tile.row_vectors;
    tile.row_max = tile.out_t + task.head_dim * tile.row_vectors;
    tile.row_sum = tile.row_max + tile.row_vectors;
    next = tile.row_sum + tile.row_vectors;
    tile.visible_end = visible_end + first * kLanes;
    LoadRows(task, tile);
  }

  for (int i = 0; i < task.n_ranges; ++i) {
    const KeyRange& range = task.ranges[i];
    for (int64_t key = 0; key < range.count; key += kTileKeys) {
      const int64_t position = range.position + key, offset = key * task.head_dim;
      for (int t = 0; t < n_tiles; ++t) {
        int64_t n_keys = range.count - key < kTileKeys ? range.count - key : kTileKeys;
        if (tiles[t].last_visible_end - position < n_keys) n_keys = tiles[t].last_visible_end - position;
        if (n_keys <= 0) continue;
        AttendTile(tiles[t], task.head_dim, range.k + offset, range.v + offset, position, n_keys, scores);
      }
    }
  }
  for (int t = 0; t < n_tiles; ++t) StoreRows(task, tiles[t]);
}

}  // namespace
}  // namespace dlm_edge
