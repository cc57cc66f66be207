// What one task of QLinear works on: the border between linear_plan.cpp and the inner loops (linear_tiles.h), which are
// compiled for several instruction sets. The definition of the arithmetic is kernels/qlinear/reference.py.
//
// A weight [out_features, in_features] lies in tiles of 16 columns, that is of 16 rows of the weight as it is written
// down: one column is one output. A vector of 64 bytes holds 16 columns of 8 / bits * 4 consecutive k (see kVector); the
// bytes of a column are neighbours. K is filled up to a multiple of 64 with codes 0, columns to a multiple of 16.
//
// No C++ library header may be included here, for the reason given in row_task.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace dlm_edge {

constexpr int kTileColumns = 16;
constexpr int kVector = 64;   // bytes: byte 4 * column + j has, at bit i * bits, the code of k = 4 * i + j
constexpr int kFilledK = 64;  // in_features is filled up to a multiple of this
constexpr int kLargestLinearK = 65536;  // of which 255 * 127 products fit an int32 with the zero's product

struct LinearWeight {
  int64_t in_features, out_features, group_size, n_groups;
  int bits;              // 8, 4, 2
  const uint8_t* codes;  // [tiles, filled K * bits / 32, kVector]
  const void* scales;    // [tiles, n_groups, 16], float32 or (has_half_scales) float16
  bool has_half_scales;
  // [tiles, n_groups, 16]: one of them or none, which means the middle of the codes.
  const uint8_t* zeros;
  const float* float_zeros;
  const float* bias;               // [out_features] or null
  const int64_t* outlier_columns;  // [n_outliers], strictly ascending
  int64_t n_outliers;
  const float* outlier_weights;  // [tiles, n_outliers, 16]
};

// How a row's codes lie: `unit` consecutive k of a row are neighbours. Words are 16 bits wide, and of each four k the
// even ones come first: they meet codes that are split by a mask and a shift.
struct RowForm {
  int unit;
  bool has_words;

  int code_bytes() const { return has_words ? 2 : 1; }
};

// Rows on their own int8 grids, in the order that the inner loops of one kernel read them. Row tiles have rows_per_tile
// rows, the last one the rest; all parts of a tile begin at its first row times what a row takes.
struct RoundedRows {
  int64_t n_rows;
  int64_t filled_k;
  RowForm form;
  int8_t* codes;    // per row tile of r rows: [filled_k / unit, r, unit]; words: int16 [filled_k / 4, r, 4], k 0 2 1 3
  int32_t* sums;    // per row tile of r rows: [n_groups, r]: the codes of each group added up
  int64_t n_blocks; // of a row, with a grid each: as many as groups, or 1
  float* scales;    // per row tile of r rows: [n_blocks, r]; NaN of rows with NaN or infinity, whose codes are 0
  float* outliers;  // [n_rows, n_outliers]
};

// What is multiplied: x [n_rows, in_features], or, gated, silu(gate) * up of x = gate and up [n_rows, 2 * in_features].
struct LinearRows {
  int64_t n_rows;
  const float* x;
  bool is_gated;
  bool has_blocks;  // a scale for each group of the weight, not one for the row
};

// The rows of one row tile to codes.
struct RoundTask {
  const LinearWeight* weight;
  const RoundedRows* rounded;
  const LinearRows* rows;
  int64_t row_begin, row_end;
};

// Some rows, beginning and ending with row tiles, times some tiles of columns.
struct ProductTask {
  const LinearWeight* weight;
  const RoundedRows* rounded;
  int64_t row_begin, row_end, tile_begin, tile_end;
  float* y;  // [n_rows, out_features]
};

struct LinearKernel {
  const char* name;
  int rows_per_tile;
  RowForm (*form)(const LinearWeight& weight);
  void (*round)(const RoundTask& task);
  void (*multiply)(const ProductTask& task);
};
extern const LinearKernel kPortableLinear;
#if defined(__x86_64__)
extern const LinearKernel kAvx2Linear;
extern const LinearKernel kAvxVnniLinear;
extern const LinearKernel kAvx512VnniLinear;
extern const LinearKernel kAmxLinear;
#endif

}  // namespace dlm_edge
