// What one task of PrefixBlockAttention works on: the border between the plan (attention.cpp) and the inner loops
// (attention_tiles.h), which are compiled for several vector widths.
//
// No C++ library header may be included here: an inline function of it, compiled with wide vectors, could be the
// copy that the linker keeps for everybody.
#pragma once

#include <stdint.h>

namespace dlm_edge {

// Consecutive keys in memory, at consecutive absolute positions.
struct KeyRange {
  const float *k, *v;  // [count, head_dim]
  int64_t position, count;
};
constexpr int kMaxKeyRanges = 3;  // cache before the window, the window, cache behind it

// One kv head, some rows, some keys. The query heads that share a kv head form one matrix whose row
// i * group + g is query i of head g: neighbouring rows see nearly the same keys.
struct RowTask {
  const float* q;  // [group, q_len, head_dim]
  int64_t group, q_len, head_dim;
  int64_t row_begin, row_end;
  int64_t start, attn_block;
  float scale_log2;  // scale * log2(e): scores are kept in base 2
  KeyRange ranges[kMaxKeyRanges];
  int n_ranges;
  float* out;  // [q_len, out_stride], already at this kv head's first column
  int64_t out_stride;
  // Not null: write unnormalised results here instead of out, for a later merge.
  // weighted [rows, head_dim], then row_max [rows], then row_sum [rows], rows = row_end - row_begin.
  float* partial;
};

// One vector width. Rows are worked on in tiles of up to max_row_vectors * lanes.
struct TileKernel {
  const char* name;
  int lanes, max_row_vectors;
  void (*run)(const RowTask& task);
};
extern const TileKernel kPortableTiles;
#if defined(__x86_64__)
extern const TileKernel kAvx2Tiles;
extern const TileKernel kAvx512Tiles;
#endif

// One past the last position that the query at `position` sees; saturates instead of overflowing.
int64_t VisibleEnd(int64_t position, int64_t attn_block);

}  // namespace dlm_edge
