// The inner loops of QLinear: one panel (a stretch of k within a group) of some tiles of columns at a time, unpacked to
// bytes where several row tiles share it, and int32 sums that become float32 once a group.
//
// A file that includes this sets DLM_EDGE_LANES and the constants of vectors.h, and defines before it
//   kRows                       rows that one call of a panel works on at most
//   kTiles                      tiles of columns that it works on at most
//   kAlwaysUnpacks              whether codes are unpacked for a single row tile too
// and after it RunPanel: linear_panels.h, linear_avx2_panels.h, linear_amx.cpp.
#pragma once

#include "linear_rounding.h"
#include "linear_task.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int64_t kPanelK = 512;         // 16 KiB of unpacked codes for two tiles
constexpr int64_t kBlockRows = 128;      // rows whose float32 sums are kept at a time
constexpr int kVectors = kTileColumns / kLanes;  // of one tile

// One call of a panel: R rows, C tiles.
struct PanelTask {
  const int8_t* rows;  // [k / unit, R, unit], in the form of the rows
  const uint8_t* codes;
  int64_t tile_stride;   // bytes from a tile to the next
  int64_t k;             // a multiple of 16
  const int32_t* sums;   // [R] of the group
  const int32_t* zeros;  // [C * 16] of the group
  const float* scales;   // [C * 16] of the group
  const float* float_zeros;  // [C * 16] or null
  int32_t* partial;      // [R, C * 16]: sums of a group that goes on in the next panel
  float* total;          // [R, C * 16]
  bool is_first, is_last;  // of the group's panels
};

typedef IntVec LooseIntVec __attribute__((aligned(4)));
DLM_EDGE_INLINE IntVec LoadInts(const void* from) { return *(const LooseIntVec*)from; }
DLM_EDGE_INLINE IntVec Broadcast(const void* four_bytes) {
  int32_t word;
  memcpy(&word, four_bytes, sizeof word);
  return IntVec{} + word;
}

// What a group starts from: its zeros times the sums of the rows, taken off.
DLM_EDGE_INLINE IntVec Start(const PanelTask& p, int r, int column) {
  return LoadInts(p.zeros + column) * -p.sums[r];
}

// The sums of a group, times its scales, onto the float32 sums.
DLM_EDGE_INLINE void AddGroup(const PanelTask& p, int width, int r, int column, IntVec sums) {
  Vec values = __builtin_convertvector(sums, Vec);
  if (p.float_zeros != nullptr) values -= Load(p.float_zeros + column) * (float)p.sums[r];
  float* const total = p.total + r * width + column;
  Store(Load(total) + values * Load(p.scales + column), total);
}

// C tiles times n_rows, at most kRows. `form` is the number of bits of a code, or kUnpacked: codes of fewer than 8 bits,
// one a byte.
constexpr int kUnpacked = 0;
template <int C, int form>
void RunPanel(int64_t n_rows, const PanelTask& task);

// Panels that are compiled for each number of rows: Panels::Run<R>.
template <class Panels, int R = kRows>
DLM_EDGE_INLINE void RunRows(int64_t n_rows, const PanelTask& task) {
  if (n_rows == R) return Panels::template Run<R>(task);
  if constexpr (R > 1) RunRows<Panels, R - 1>(n_rows, task);
}

// Codes of `bits` bits to one a byte: `k` of them for each column of a tile.
template <int bits>
DLM_EDGE_INLINE void Unpack(const uint8_t* codes, int64_t k, uint8_t* out) {
  constexpr int per_byte = 8 / bits;
  constexpr uint32_t mask = (0xffu >> (8 - bits)) * 0x01010101u;
  const int64_t n_vectors = k / (4 * per_byte);
  for (int64_t i = 0; i < n_vectors; ++i, codes += kVector)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const UintVec packed = (UintVec)LoadInts(codes + v * 4 * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < per_byte; ++j)
        *(LooseIntVec*)(out + (i * per_byte + j) * kVector + v * 4 * kLanes) = (IntVec)((packed >> (j * bits)) & mask);
    }
}

// The numbers of one group for C tiles.
struct GroupNumbers {
  alignas(64) float scales[kTiles * kTileColumns];
  alignas(64) float float_zeros[kTiles * kTileColumns];
  alignas(64) int32_t zeros[kTiles * kTileColumns];
};

DLM_EDGE_INLINE void ReadNumbers(const LinearWeight& weight, int64_t tile, int n_tiles, int64_t group,
                                 GroupNumbers* numbers) {
  for (int c = 0; c < n_tiles; ++c) {
    const int64_t from = ((tile + c) * weight.n_groups + group) * kTileColumns;
    const int to = c * kTileColumns;
    if (weight.has_half_scales)
      HalvesToFloats(static_cast<const uint16_t*>(weight.scales) + from, kTileColumns, numbers->scales + to);
    else
      memcpy(numbers->scales + to, static_cast<const float*>(weight.scales) + from, kTileColumns * sizeof(float));
    const int32_t same = weight.float_zeros == nullptr ? 1 << (weight.bits - 1) : 0;
    for (int i = 0; i < kTileColumns; ++i)
      numbers->zeros[to + i] = weight.zeros == nullptr ? same : weight.zeros[from + i];
    if (weight.float_zeros != nullptr)
      memcpy(numbers->float_zeros + to, weight.float_zeros + from, kTileColumns * sizeof(float));
  }
}

// sums * row scale + outliers + bias, to y.
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
  alignas(64) float out[kTileColumns];
#pragma GCC unroll 4
  for (int v = 0; v < kTileColumns; v += kLanes) {
    Vec values = Load(total + v) * task.rounded->scales[row];
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

// The codes of the next panel, a part of them with each row tile. While several row tiles use a panel nothing else is
// read, so that the next one would be waited for; a single row tile reads fast enough to be fetched for by itself.
struct Ahead {
  const uint8_t* codes;
  int64_t tile_stride, bytes;  // of each tile

  DLM_EDGE_INLINE void Fetch(int n_tiles, int64_t part, int64_t n_parts) const {
    const int64_t begin = bytes * part / n_parts / kVector * kVector;
    const int64_t end = bytes * (part + 1) / n_parts / kVector * kVector;
    for (int c = 0; c < n_tiles; ++c)
      for (int64_t i = begin; i < end; i += kVector) __builtin_prefetch(codes + c * tile_stride + i, 0, 2);
  }
};

// C tiles of columns, times rows of whole row tiles (kBlockRows of them at most).
template <int C, int bits>
void MultiplyTiles(const ProductTask& task, int64_t row_begin, int64_t row_end, int64_t tile, bool has_next) {
  static thread_local Scratch scratch;
  constexpr int width = C * kTileColumns;
  const LinearWeight& weight = *task.weight;
  const RoundedRows& rounded = *task.rounded;
  const int64_t n_rows = row_end - row_begin;
  const size_t sums_bytes = Aligned(n_rows * width * sizeof(float));
  char* const memory = scratch.Reserve(2 * sums_bytes + C * kPanelK * kTileColumns);
  float* const total = reinterpret_cast<float*>(memory);
  int32_t* const partial = reinterpret_cast<int32_t*>(memory + sums_bytes);
  uint8_t* const unpacked = reinterpret_cast<uint8_t*>(memory + 2 * sums_bytes);
  memset(total, 0, sums_bytes);

  const int64_t step = rounded.form.unit > 16 ? rounded.form.unit : 16;
  const int64_t all_k = (weight.in_features + step - 1) / step * step;
  const int64_t tile_bytes = rounded.filled_k * kTileColumns * bits / 8;
  const int64_t n_row_tiles = (n_rows + kRows - 1) / kRows;
  const bool unpacks = bits != 8 && (n_rows > kRows || kAlwaysUnpacks);
  GroupNumbers numbers;
  for (int64_t g = 0; g < weight.n_groups; ++g) {
    ReadNumbers(weight, tile, C, g, &numbers);
    const int64_t begin = g * weight.group_size;
    const int64_t end = g + 1 == weight.n_groups ? all_k : begin + weight.group_size;
    for (int64_t k = begin; k < end; k += kPanelK) {
      const int64_t count = end - k < kPanelK ? end - k : kPanelK;
      const int64_t panel_bytes = count * kTileColumns * bits / 8;
      const uint8_t* codes = weight.codes + tile * tile_bytes + k * kTileColumns * bits / 8;
      int64_t stride = tile_bytes;
      const bool is_last = k + count >= all_k, fetches = n_row_tiles > 1 && (has_next || !is_last);
      const Ahead next = {is_last ? weight.codes + (tile + C) * tile_bytes : codes + panel_bytes, tile_bytes,
                          fetches ? panel_bytes : 0};
      if (unpacks) {
        for (int c = 0; c < C; ++c) Unpack<bits>(codes + c * tile_bytes, count, unpacked + c * count * kTileColumns);
        codes = unpacked;
        stride = count * kTileColumns;
      }
      for (int64_t row = row_begin; row < row_end; row += kRows) {
        const int64_t r = row_end - row < kRows ? row_end - row : kRows;
        const int64_t at = (row - row_begin) * width;
        next.Fetch(C, (row - row_begin) / kRows, n_row_tiles);
        const PanelTask panel = {rounded.codes + (row * rounded.filled_k + k * r) * rounded.form.code_bytes(), codes, stride, count,
                                 rounded.sums + row * weight.n_groups + g * r, numbers.zeros, numbers.scales,
                                 weight.float_zeros == nullptr ? nullptr : numbers.float_zeros, partial + at,
                                 total + at, k == begin, k + count == end};
        if (bits != 8 && (kAlwaysUnpacks || unpacks))
          RunPanel<C, bits == 8 ? 8 : kUnpacked>(r, panel);
        else if constexpr (bits == 8 || !kAlwaysUnpacks)
          RunPanel<C, bits>(r, panel);
      }
    }
  }
  for (int64_t row = row_begin; row < row_end; ++row)
    for (int c = 0; c < C; ++c)
      Finish(task, row, tile + c, total + (row - row_begin) * width + c * kTileColumns);
}

template <int bits>
void MultiplyBits(const ProductTask& task) {
  // Blocks of equal numbers of row tiles.
  const int64_t n_rows = task.row_end - task.row_begin, n_blocks = (n_rows + kBlockRows - 1) / kBlockRows;
  const int64_t block = ((n_rows + kRows - 1) / kRows + n_blocks - 1) / n_blocks * kRows;
  for (int64_t row = task.row_begin; row < task.row_end; row += block) {
    const int64_t end = task.row_end - row < block ? task.row_end : row + block;
    int64_t tile = task.tile_begin;
    for (; tile + kTiles <= task.tile_end; tile += kTiles)
      MultiplyTiles<kTiles, bits>(task, row, end, tile, tile + 2 * kTiles <= task.tile_end);
    for (; tile < task.tile_end; ++tile) MultiplyTiles<1, bits>(task, row, end, tile, tile + 1 < task.tile_end);
  }
}

void MultiplyLinear(const ProductTask& task) {
  switch (task.weight->bits) {
    case 8: return MultiplyBits<8>(task);
    case 4: return MultiplyBits<4>(task);
    default: return MultiplyBits<2>(task);
  }
}

}  // namespace
}  // namespace dlm_edge
