// Up to 64 keys at a time, out of key ranges: where they lie, or dequantized into working memory.
#pragma once

#include "vectors.h"

namespace dlm_edge {
namespace {

constexpr int kTileKeys = 64;

struct KeySegment {
  const float *k, *v;         // what is computed with
  const char *k_raw, *v_raw;  // what lies in the cache
  int64_t position, count;
};

struct KeyTile {
  KeySegment segments[kTileKeys];
  int n_segments;
  int64_t n_keys;
};

struct KeyLayout {
  int64_t head_dim;
  int64_t row_bytes;  // of one key, or one value, in memory
  const KeyCache* cache;
};

DLM_EDGE_INLINE KeyLayout LayoutOf(int64_t head_dim, const KeyCache* cache) {
  int64_t row_bytes = head_dim * (int64_t)sizeof(float);
  if (cache != nullptr && cache->type == kHalfCache) row_bytes = head_dim * 2;
  if (cache != nullptr && cache->type == kByteCache) row_bytes = head_dim;
  if (cache != nullptr && cache->type == kNibbleCache) row_bytes = head_dim / 2;
  return {head_dim, row_bytes, cache};
}

DLM_EDGE_INLINE KeySegment SegmentOf(const KeyLayout& layout, const KeyRange& range, int64_t from, int64_t count) {
  const int64_t position = range.position + from;
  if (range.k != nullptr) {
    const float *k = range.k + from * layout.head_dim, *v = range.v + from * layout.head_dim;
    return {k, v, (const char*)k, (const char*)v, position, count};
  }
  const int64_t offset = position * layout.row_bytes;
  return {nullptr,  nullptr, (const char*)layout.cache->k + offset, (const char*)layout.cache->v + offset,
          position, count};
}

// Walks over the ranges. `join`: a tile may span several ranges.
struct KeyWalk {
  const KeyRange *range, *end;
  int64_t done;
  bool join;

  void Next(const KeyLayout& layout, KeyTile* tile) {
    tile->n_segments = 0;
    tile->n_keys = 0;
    while (range < end && tile->n_keys < kTileKeys) {
      const int64_t room = kTileKeys - tile->n_keys, left = range->count - done;
      const int64_t count = left < room ? left : room;
      tile->segments[tile->n_segments++] = SegmentOf(layout, *range, done, count);
      tile->n_keys += count;
      done += count;
      if (done == range->count) {
        ++range;
        done = 0;
      }
      if (!join) break;
    }
  }
};

// A run of keys with one set of scales.
void DequantizeKeyGroup(const KeyCache& cache, int64_t head_dim, const char* codes, int64_t group, int64_t n_keys,
                        float* scale, float* out) {
  float* low = scale + head_dim;
  HalvesToFloats(cache.k_scale + group * head_dim, head_dim, scale);
  HalvesToFloats(cache.k_low + group * head_dim, head_dim, low);
  const uint8_t* code = (const uint8_t*)codes;
  const bool bytes = cache.type == kByteCache;
  for (int64_t key = 0; key < n_keys; ++key, out += head_dim, code += bytes ? head_dim : head_dim / 2) {
    int64_t d = 0;
    if (bytes) {
      for (; d + kLanes <= head_dim; d += kLanes)
        Store(BytesToFloats(code + d) * Load(scale + d) + Load(low + d), out + d);
      for (; d < head_dim; ++d) out[d] = (float)code[d] * scale[d] + low[d];
    } else {
      for (; d + kLanes <= head_dim; d += kLanes)
        Store(NibblesToFloats(code + d / 2) * Load(scale + d) + Load(low + d), out + d);
      for (; d < head_dim; ++d) out[d] = (float)(code[d / 2] >> (d % 2 * 4) & 15) * scale[d] + low[d];
    }
  }
}

// `scale` is working memory of 2 * head_dim floats.
void ReadKeys(const KeyLayout& layout, const KeySegment& segment, float* scale, float* out) {
  const KeyCache& cache = *layout.cache;
  if (cache.type == kHalfCache) {
    HalvesToFloats((const uint16_t*)segment.k_raw, segment.count * layout.head_dim, out);
    return;
  }
  const int64_t end = segment.position + segment.count;
  const int64_t n_coded = (end < cache.tail_begin ? end : cache.tail_begin) - segment.position;
  int64_t key = 0;
  while (key < n_coded) {
    const int64_t group = (segment.position + key) / cache.k_group;
    const int64_t left = (group + 1) * cache.k_group - segment.position - key;
    const int64_t n_keys = left < n_coded - key ? left : n_coded - key;
    DequantizeKeyGroup(cache, layout.head_dim, segment.k_raw + key * layout.row_bytes, group, n_keys, scale,
                       out + key * layout.head_dim);
    key += n_keys;
  }
  if (key < segment.count)
    memcpy(out + key * layout.head_dim, cache.k_tail + (segment.position + key - cache.tail_begin) * layout.head_dim,
           (segment.count - key) * layout.head_dim * sizeof(float));
}

// `scale` is working memory of 2 * kTileKeys * head_dim / v_group floats.
void ReadValues(const KeyLayout& layout, const KeySegment& segment, float* scale, float* out) {
  const KeyCache& cache = *layout.cache;
  if (cache.type == kHalfCache) {
    HalvesToFloats((const uint16_t*)segment.v_raw, segment.count * layout.head_dim, out);
    return;
  }
  const int64_t n_groups = layout.head_dim / cache.v_group, width = cache.v_group, n_scales = segment.count * n_groups;
  float* low = scale + n_scales;
  HalvesToFloats(cache.v_scale + segment.position * n_groups, n_scales, scale);
  HalvesToFloats(cache.v_low + segment.position * n_groups, n_scales, low);
  const uint8_t* codes = (const uint8_t*)segment.v_raw;
  for (int64_t key = 0; key < segment.count; ++key, codes += layout.row_bytes) {
    for (int64_t g = 0; g < n_groups; ++g, out += width, ++scale, ++low) {
      int64_t d = 0;
      if (cache.type == kByteCache) {
        const uint8_t* code = codes + g * width;
        for (; d + kLanes <= width; d += kLanes) Store(BytesToFloats(code + d) * *scale + *low, out + d);
        for (; d < width; ++d) out[d] = (float)code[d] * *scale + *low;
      } else {
        // A group may begin in the middle of a byte only where its width is odd.
        if (width % 2 == 0)
          for (; d + kLanes <= width; d += kLanes)
            Store(NibblesToFloats(codes + (g * width + d) / 2) * *scale + *low, out + d);
        for (; d < width; ++d) {
          const int64_t channel = g * width + d;
          out[d] = (float)(codes[channel / 2] >> (channel % 2 * 4) & 15) * *scale + *low;
        }
      }
    }
  }
}

// Floats of working memory that ReadTile wants.
DLM_EDGE_INLINE size_t TileFloats(int64_t head_dim) { return 4 * kTileKeys * (size_t)head_dim; }

// The same tile as one contiguous segment in `memory` when it is not float32 already. `values`: not only keys.
void ReadTile(const KeyLayout& layout, const KeyTile& raw, bool values, float* memory, KeyTile* tile) {
  float *k = memory, *v = memory + kTileKeys * layout.head_dim, *scale = v + kTileKeys * layout.head_dim;
  tile->segments[0] = {k, v, nullptr, nullptr, raw.segments[0].position, raw.n_keys};
  tile->n_segments = 1;
  tile->n_keys = raw.n_keys;
  for (int s = 0; s < raw.n_segments; ++s) {
    const KeySegment& segment = raw.segments[s];
    ReadKeys(layout, segment, scale, k);
    if (values) ReadValues(layout, segment, scale, v);
    k += segment.count * layout.head_dim;
    v += segment.count * layout.head_dim;
  }
}

// Prefetches the rows of a tile a few at a time. Harmless past the end of an array.
struct Fetch {
  const KeyTile* tile;
  bool values;
  int64_t row_bytes;
  int segment;
  int64_t row;

  DLM_EDGE_INLINE void Rows(int64_t count) {
    while (count > 0 && segment < tile->n_segments) {
      const KeySegment& from = tile->segments[segment];
      const int64_t n = from.count - row < count ? from.count - row : count;
      const char* begin = (values ? from.v_raw : from.k_raw) + row * row_bytes;
      for (int64_t i = 0; i < n * row_bytes; i += 64)
        __builtin_prefetch(begin + i, 0, 2);  // into the second nearest cache: the nearest is full
      count -= n;
      row += n;
      if (row == from.count) {
        ++segment;
        row = 0;
      }
    }
  }
};

}  // namespace
}  // namespace dlm_edge
