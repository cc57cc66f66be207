// One row of codes of 8, 4, 3 or 2 bits to float32: code * scale + low.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

// Four fields of two bits, one a byte.
DLM_EDGE_INLINE uint32_t SpreadPairs(uint32_t byte) {
  byte = (byte | byte << 12) & 0x000F000F;
  return (byte | byte << 6) & 0x03030303;
}

// Eight bits, one a byte, in bit 2 of it.
DLM_EDGE_INLINE uint64_t SpreadHighBits(uint64_t byte) {
  byte = (byte | byte << 28) & 0x0000000F0000000F;
  byte = (byte | byte << 14) & 0x0003000300030003;
  return ((byte | byte << 7) & 0x0101010101010101) << 2;
}

void SpreadFields(const CodeRow& row, uint8_t* fields) {
  for (int64_t i = 0; i < row.width / 4; ++i) {
    const uint32_t four = SpreadPairs(row.codes[i]);
    memcpy(fields + 4 * i, &four, sizeof four);
  }
  if (row.bits != 3) return;
  const uint8_t* const high = row.codes + row.width / 4;
  for (int64_t i = 0; i < row.width / 8; ++i) {
    uint64_t eight;
    memcpy(&eight, fields + 8 * i, sizeof eight);
    eight |= SpreadHighBits(high[i]);
    memcpy(fields + 8 * i, &eight, sizeof eight);
  }
}

void Dequantize(const CodeRow& row) {
  static thread_local Scratch scratch;
  const size_t number_bytes = Aligned(2 * row.width * sizeof(float));
  char* memory = scratch.Reserve(number_bytes + row.width);
  float *scale = reinterpret_cast<float*>(memory), *low = scale + row.width;
  const uint8_t* fields = row.codes;
  if (row.bits < 4) {
    SpreadFields(row, reinterpret_cast<uint8_t*>(memory + number_bytes));
    fields = reinterpret_cast<const uint8_t*>(memory + number_bytes);
  }
  const int64_t n_groups = row.width / row.group;
  HalvesToFloats(row.scale, n_groups, scale);
  HalvesToFloats(row.low, n_groups, low);
  for (int64_t g = 0; g < (row.group == 1 ? 1 : n_groups); ++g) {
    const int64_t begin = g * row.group, end = row.group == 1 ? row.width : begin + row.group;
    int64_t i = begin;
    if (row.bits == 4 && begin % 2 != 0) {
      row.out[i] = (float)(row.codes[i / 2] >> 4) * scale[g] + low[g];
      ++i;
    }
    for (; i + kLanes <= end; i += kLanes) {
      const Vec field = row.bits == 4 ? NibblesToFloats(row.codes + i / 2) : BytesToFloats(fields + i);
      const Vec step = row.group == 1 ? Load(scale + i) : Vec{} + scale[g];
      const Vec first = row.group == 1 ? Load(low + i) : Vec{} + low[g];
      Store(field * step + first, row.out + i);
    }
    for (; i < end; ++i) {
      const int64_t at = row.group == 1 ? i : g;
      const int field = row.bits == 4 ? row.codes[i / 2] >> (i % 2 * 4) & 15 : fields[i];
      row.out[i] = (float)field * scale[at] + low[at];
    }
  }
}

}  // namespace
}  // namespace dlm_edge
