// How QLinear goes through k: in stretches, one for each panel, with the numbers of their groups.
#pragma once

#include "linear_panel.h"

namespace dlm_edge {
namespace {

constexpr int64_t kPanelK = 512;  // 16 KiB of unpacked codes for two tiles
constexpr int kPanelGroups = kPanelK / 16;

// What a panel takes of k: several whole groups, or a part of one.
struct Stretch {
  int64_t begin, group, n_groups, k;  // k of each group
  bool is_first, is_last;

  int64_t end() const { return begin + n_groups * k; }
};

// `all_k` is in_features, filled up as the rows of the kernel need it.
DLM_EDGE_INLINE Stretch StretchAt(const LinearWeight& weight, int64_t all_k, int64_t begin) {
  const int64_t size = weight.group_size, group = begin / size, from = group * size;
  const int64_t whole = weight.n_groups == 1 ? 0 : weight.in_features / size - group;
  const int64_t fitting = whole < kPanelK / size ? whole : kPanelK / size;
  if (begin == from && fitting > 0) return {begin, group, fitting, size, true, true};
  const int64_t end = group + 1 == weight.n_groups ? all_k : from + size;
  const int64_t k = end - begin < kPanelK ? end - begin : kPanelK;
  return {begin, group, 1, k, begin == from, begin + k == end};
}

// The numbers of a panel's groups for C tiles: [groups, C * 16].
struct GroupNumbers {
  alignas(64) float scales[kPanelGroups * kTiles * kTileColumns];
  alignas(64) float float_zeros[kPanelGroups * kTiles * kTileColumns];
  alignas(64) int32_t zeros[kPanelGroups * kTiles * kTileColumns];
};

template <int C>
DLM_EDGE_INLINE void ReadNumbers(const LinearWeight& weight, int64_t tile, const Stretch& stretch,
                                 GroupNumbers* numbers) {
  for (int64_t g = 0; g < stretch.n_groups; ++g)
    for (int c = 0; c < C; ++c) {
      const int64_t from = ((tile + c) * weight.n_groups + stretch.group + g) * kTileColumns;
      const int64_t to = (g * C + c) * kTileColumns;
      if (weight.has_half_scales)
        HalvesToFloats(static_cast<const uint16_t*>(weight.scales) + from, kTileColumns, numbers->scales + to);
      else
        memcpy(numbers->scales + to, static_cast<const float*>(weight.scales) + from, kTileColumns * sizeof(float));
      if (weight.zeros != nullptr)
        for (int i = 0; i < kTileColumns; ++i) numbers->zeros[to + i] = weight.zeros[from + i];
      if (weight.float_zeros != nullptr)
        memcpy(numbers->float_zeros + to, weight.float_zeros + from, kTileColumns * sizeof(float));
    }
}

}  // namespace
}  // namespace dlm_edge
