// Instructions that the processor at hand may lack, in plain C++, put in front of kernels/csrc/linear_amx.cpp and
// linear_avx_vnni.cpp by the compiler's option -include. Tiles follow Intel's description of AMX (Software Developer's
// Manual, volume 2, TDPBSUD and its neighbours); what a processor would answer with an exception ends the program.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace emulated {

struct Tile {
  int rows, row_bytes;
  uint8_t bytes[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local bool is_configured = false;

inline void Require(bool holds) {
  if (!holds) abort();
}

inline void LoadConfig(const void* memory) {
  const uint8_t* const config = static_cast<const uint8_t*>(memory);
  Require(config[0] == 1 && config[1] == 0);
  for (int i = 2; i < 16; ++i) Require(config[i] == 0);
  for (int i = 0; i < 8; ++i) {
    uint16_t row_bytes;
    memcpy(&row_bytes, config + 16 + 2 * i, 2);
    Require(config[48 + i] <= 16 && row_bytes <= 64 && (config[48 + i] == 0) == (row_bytes == 0));
    tiles[i] = Tile{config[48 + i], row_bytes, {}};
  }
  is_configured = true;
}

inline void Release() {
  memset(tiles, 0, sizeof tiles);
  is_configured = false;
}

inline Tile& Configured(int tile) {
  Require(is_configured && tiles[tile].rows > 0);
  return tiles[tile];
}

inline void Zero(int tile) { memset(Configured(tile).bytes, 0, sizeof tiles[tile].bytes); }

inline void Load(int tile, const void* base, int64_t stride) {
  Zero(tile);
  for (int r = 0; r < tiles[tile].rows; ++r)
    memcpy(tiles[tile].bytes[r], static_cast<const char*>(base) + r * stride, tiles[tile].row_bytes);
}

inline void StoreTile(int tile, void* base, int64_t stride) {
  const Tile& from = Configured(tile);
  for (int r = 0; r < from.rows; ++r) memcpy(static_cast<char*>(base) + r * stride, from.bytes[r], from.row_bytes);
}

// Signed bytes of `a` times unsigned bytes of `b`.
inline void MultiplySignedUnsigned(int sums, int a, int b) {
  Tile &c = Configured(sums), &x = Configured(a), &w = Configured(b);
  Require(c.rows == x.rows && c.row_bytes == w.row_bytes && x.row_bytes % 4 == 0 && x.row_bytes / 4 == w.rows);
  for (int r = 0; r < c.rows; ++r)
    for (int k = 0; k < w.rows; ++k)
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        int32_t sum;
        memcpy(&sum, &c.bytes[r][4 * n], 4);
        for (int j = 0; j < 4; ++j) sum += static_cast<int8_t>(x.bytes[r][4 * k + j]) * w.bytes[k][4 * n + j];
        memcpy(&c.bytes[r][4 * n], &sum, 4);
      }
}

inline __m256i DotBytes(__m256i sums, __m256i bytes, __m256i signed_bytes) {
  int32_t sum[8];
  uint8_t a[32];
  int8_t b[32];
  memcpy(sum, &sums, 32);
  memcpy(a, &bytes, 32);
  memcpy(b, &signed_bytes, 32);
  for (int i = 0; i < 32; ++i) sum[i / 4] += a[i] * b[i];
  memcpy(&sums, sum, 32);
  return sums;
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _mm256_dpbusd_avx_epi32
#define _tile_loadconfig emulated::LoadConfig
#define _tile_release emulated::Release
#define _tile_zero emulated::Zero
#define _tile_loadd emulated::Load
#define _tile_stored emulated::StoreTile
#define _tile_dpbsud emulated::MultiplySignedUnsigned
#define _mm256_dpbusd_avx_epi32 emulated::DotBytes
