// What one task works on: the border between the plans (attention.cpp, sparse_attention.cpp, select_pages.cpp) and the
// inner loops (*_tiles.h), which are compiled for several vector widths.
//
// No C++ library header may be included here: an inline function of it, compiled with wide vectors, could be the
// copy that the linker keeps for everybody.
#pragma once

#include <stdint.h>

namespace dlm_edge {

// Consecutive keys in memory, at consecutive absolute positions.
struct KeyRange {
  const float *k, *v;  // [count, head_dim]; null: read `position` of the task's KeyCache
  int64_t position, count;
};

// Keys and values of one kv head that are not float32. Codes stand for code * scale + low. Those of kPlanesCache are
// bytes, code = 16 * upper + lower, of which k and v hold the upper nibbles, k_lower and v_lower the lower ones.
enum CacheType : int { kFloatCache, kHalfCache, kByteCache, kNibbleCache, kPlanesCache };
struct KeyCache {
  CacheType type;
  const void *k, *v;                // [capacity, head_dim]; nibbles: [capacity, head_dim / 2], even channel low
  const uint16_t *k_scale, *k_low;  // float16 [capacity / k_group, head_dim]
  const uint16_t *v_scale, *v_low;  // float16 [capacity, head_dim / v_group]
  const float* k_tail;              // [k_group, head_dim]: exact keys of the positions from tail_begin on
  int64_t k_group, v_group, tail_begin;
  const void *k_lower, *v_lower;  // laid out like k and v
  bool is_upper;  // kNibbleCache: the upper nibbles of bytes, whose scales these are; the others count as 7.5
};

// The query heads that share a kv head form one matrix whose row i * group + g is query i of head g: neighbouring rows
// see nearly the same keys.
struct QueryRows {
  const float* q;         // [group, q_len, head_dim]
  const int32_t* chosen;  // not null: row i * group + g is query chosen[i]
  int64_t group, q_len, head_dim;
  int64_t row_begin, row_end;
};

// One kv head, some rows, some keys.
struct RowTask {
  QueryRows rows;
  // attn_block 0: every row sees every key, and `start` has no meaning.
  int64_t start, attn_block;
  float scale_log2;  // scale * log2(e): scores are kept in base 2
  const KeyRange* ranges;
  int64_t n_ranges;
  const KeyCache* cache;
  float* out;  // [q_len, out_stride], already at this kv head's first column
  int64_t out_stride;
  // Not null: write unnormalised results here instead of out, for a later merge.
  // weighted [rows, head_dim], then row_max [rows], then row_sum [rows], rows = row_end - row_begin.
  float* partial;
};

// The attention mass of some pages of one kv head: each page's share of a row's softmax, the largest over the rows.
struct MassTask {
  QueryRows rows;
  float scale_log2;
  const float* row_lse;    // [row_end - row_begin], base 2
  const KeyRange* ranges;  // each within one page
  const int64_t* pages;    // [n_ranges]: the page of each range; ranges of one page are neighbours
  int64_t n_ranges;
  const KeyCache* cache;
  float* masses;  // [n_slots] of this kv head; only the named pages are written, as a running maximum
};

// The pages that some rows of one kv head choose by their bounds, or (masses not null) that hold most mass.
struct ChoiceTask {
  QueryRows rows;
  const int8_t *low, *high;  // [n_slots, head_dim]
  const float* page_scale;   // [n_slots]
  const float* masses;       // [n_slots]
  const uint8_t* forced;     // [n_valid]: ranked before all others
  int64_t n_slots, n_valid, n_pages;
  uint8_t* picked;  // [n_valid]: 1 where any row picks the page, else 0
};

// The attention weights of some rows, summed over the rows and over the keys of each block.
struct PoolTask {
  QueryRows rows;
  float scale_log2;
  const float* row_lse;  // [row_end - row_begin], base 2
  const float* k;        // [n_keys, head_dim]
  int64_t n_keys, block_size;
  float* sums;  // [ceil(n_keys / block_size)]
};

// One row of a quantized matrix, to float32.
struct CodeRow {
  const uint8_t*
      codes;  // [width * bits / 8]; 3 bits: a plane of two bits [width / 4], then one of high bits [width / 8]
  const uint16_t *scale, *low;  // float16 [width / group]
  int64_t width, group;         // group 1: each channel has its own
  int bits;                     // 8, 4, 3, 2
  float* out;
};

// Some rows of floats to codes, each group of them with one scale and low: `group` consecutive values of a row, whose
// n_rows is 1, or (group 1) one channel of all the rows.
struct QuantizeTask {
  const float* values;  // [n_rows, width]
  int64_t n_rows, width, group;
  int bits;              // 8, 4, 3, 2
  uint8_t* codes;        // [n_rows, width * bits / 8], laid out as in CodeRow
  uint16_t *scale, *low;  // float16 [width / group]
};

// Logits that are added up at once, and the sums of a row. Weights are exp(logit - largest).
constexpr int64_t kScoreChunk = 1024;
struct ScoreSums {
  double weights, weighted;  // of the weights, and of (logit - largest) * weight
  float second;              // largest of logit - largest
};

// One variant. Rows are worked on in tiles of up to max_row_vectors * lanes.
struct TileKernel {
  const char* name;
  int lanes, max_row_vectors;
  void (*attend)(const RowTask& task);
  void (*measure)(const MassTask& task);
  void (*choose)(const ChoiceTask& task);
  void (*dequantize)(const CodeRow& row);
  void (*pool)(const PoolTask& task);
  void (*quantize)(const QuantizeTask& task);
  float (*largest)(const float* logits);  // of a chunk; NaN where it holds one
  void (*weigh)(const float* logits, float largest, ScoreSums* sums);  // adds a chunk
};
extern const TileKernel kPortableTiles;
#if defined(__x86_64__)
extern const TileKernel kAvx2Tiles;
extern const TileKernel kAvx512Tiles;
extern const TileKernel kAvx512VnniTiles;
#endif

// One past the last position that the query at `position` sees; saturates instead of overflowing.
int64_t VisibleEnd(int64_t position, int64_t attn_block);

}  // namespace dlm_edge
