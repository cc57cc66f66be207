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
  const char *k_lower, *v_lower;  // likewise, of kPlanesCache
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
  if (cache != nullptr && (cache->type == kNibbleCache || cache->type == kPlanesCache)) row_bytes = head_dim / 2;
  return {head_dim, row_bytes, cache};
}

DLM_EDGE_INLINE KeySegment SegmentOf(const KeyLayout& layout, const KeyRange& range, int64_t from, int64_t count) {
  const int64_t position = range.position + from;
  if (range.k != nullptr) {
    const float *k = range.k + from * layout.head_dim, *v = range.v + from * layout.head_dim;
    return {k, v, (const char*)k, (const char*)v, position, count, nullptr, nullptr};
  }
  const int64_t offset = position * layout.row_bytes;
  const KeyCache& cache = *layout.cache;
  KeySegment segment{nullptr,  nullptr, (const char*)cache.k + offset, (const char*)cache.v + offset,
                     position, count,   nullptr,                       nullptr};
  if (cache.type == kPlanesCache) {
    segment.k_lower = (const char*)cache.k_lower + offset;
    segment.v_lower = (const char*)cache.v_lower + offset;
  }
  return segment;
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

// `count` numbers each, of the codes that are read.
void ReadScales(const KeyCache& cache, const uint16_t* scales, const uint16_t* lows, int64_t count, float* scale,
                float* low) {
  HalvesToFloats(scales, count, scale);
  HalvesToFloats(lows, count, low);
  if (!cache.is_upper) return;
  for (int64_t i = 0; i < count; ++i) {
    low[i] += 7.5f * scale[i];
    scale[i] *= 16.0f;
  }
}

// The codes of one key or value; `lower` is read in kPlanesCache only.
template <CacheType type>
struct CodesOf {
  const uint8_t *codes, *lower;

  // Of the channels from an even one on.
  DLM_EDGE_INLINE Vec Floats(int64_t d) const {
    if constexpr (type == kByteCache) return BytesToFloats(codes + d);
    if constexpr (type == kNibbleCache) return NibblesToFloats(codes + d / 2);
    return NibblesToFloats(codes + d / 2) * 16.0f + NibblesToFloats(lower + d / 2);
  }
  DLM_EDGE_INLINE float Float(int64_t d) const {
    const int shift = d % 2 * 4;
    if constexpr (type == kByteCache) return (float)codes[d];
    if constexpr (type == kNibbleCache) return (float)(codes[d / 2] >> shift & 15);
    return (float)((codes[d / 2] >> shift & 15) << 4 | (lower[d / 2] >> shift & 15));
  }
  DLM_EDGE_INLINE void Advance(int64_t row_bytes) {
    codes += row_bytes;
    if constexpr (type == kPlanesCache) lower += row_bytes;
  }
};

// A run of keys with one set of scales [head_dim].
template <CacheType type>
void DequantizeKeys(CodesOf<type> row, int64_t row_bytes, int64_t n_keys, int64_t head_dim, const float* scale,
                    const float* low, float* out) {
  for (int64_t key = 0; key < n_keys; ++key, out += head_dim, row.Advance(row_bytes)) {
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) Store(row.Floats(d) * Load(scale + d) + Load(low + d), out + d);
    for (; d < head_dim; ++d) out[d] = row.Float(d) * scale[d] + low[d];
  }
}

void DequantizeKeys(const KeyLayout& layout, const KeySegment& segment, int64_t key, int64_t n_keys, const float* scale,
                    const float* low, float* out) {
  const int64_t bytes = layout.row_bytes, dim = layout.head_dim, offset = key * bytes;
  const uint8_t* const codes = (const uint8_t*)segment.k_raw + offset;
  switch (layout.cache->type) {
    case kByteCache: return DequantizeKeys<kByteCache>({codes, nullptr}, bytes, n_keys, dim, scale, low, out);
    case kNibbleCache: return DequantizeKeys<kNibbleCache>({codes, nullptr}, bytes, n_keys, dim, scale, low, out);
    default:
      return DequantizeKeys<kPlanesCache>({codes, (const uint8_t*)segment.k_lower + offset}, bytes, n_keys, dim, scale,
                                          low, out);
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
    float* const low = scale + layout.head_dim;
    ReadScales(cache, cache.k_scale + group * layout.head_dim, cache.k_low + group * layout.head_dim, layout.head_dim,
               scale, low);
    DequantizeKeys(layout, segment, key, n_keys, scale, low, out + key * layout.head_dim);
    key += n_keys;
  }
  if (key < segment.count)
    memcpy(out + key * layout.head_dim, cache.k_tail + (segment.position + key - cache.tail_begin) * layout.head_dim,
           (segment.count - key) * layout.head_dim * sizeof(float));
}

// scale and low [n_values, head_dim / width]; a group of `width` values may begin at an odd channel where it is odd.
template <CacheType type>
void DequantizeValues(CodesOf<type> row, int64_t row_bytes, int64_t n_values, int64_t head_dim, int64_t width,
                      const float* scale, const float* low, float* out) {
  const bool in_vectors = type == kByteCache || width % 2 == 0;
  for (int64_t i = 0; i < n_values; ++i, row.Advance(row_bytes)) {
    for (int64_t begin = 0; begin < head_dim; begin += width, out += width, ++scale, ++low) {
      int64_t d = 0;
      if (in_vectors)
        for (; d + kLanes <= width; d += kLanes) Store(row.Floats(begin + d) * *scale + *low, out + d);
      for (; d < width; ++d) out[d] = row.Float(begin + d) * *scale + *low;
    }
  }
}

// `scale` is working memory of 2 * kTileKeys * head_dim / v_group floats.
void ReadValues(const KeyLayout& layout, const KeySegment& segment, float* scale, float* out) {
  const KeyCache& cache = *layout.cache;
  if (cache.type == kHalfCache) {
    HalvesToFloats((const uint16_t*)segment.v_raw, segment.count * layout.head_dim, out);
    return;
  }
  const int64_t dim = layout.head_dim, bytes = layout.row_bytes, width = cache.v_group, n_groups = dim / width;
  float* const low = scale + segment.count * n_groups;
  ReadScales(cache, cache.v_scale + segment.position * n_groups, cache.v_low + segment.position * n_groups,
             segment.count * n_groups, scale, low);
  const uint8_t *codes = (const uint8_t*)segment.v_raw, *lower = (const uint8_t*)segment.v_lower;
  switch (cache.type) {
    case kByteCache: return DequantizeValues<kByteCache>({codes, lower}, bytes, segment.count, dim, width, scale, low, out);
    case kNibbleCache:
      return DequantizeValues<kNibbleCache>({codes, lower}, bytes, segment.count, dim, width, scale, low, out);
    default: return DequantizeValues<kPlanesCache>({codes, lower}, bytes, segment.count, dim, width, scale, low, out);
  }
}

// Floats of working memory that ReadTile wants.
DLM_EDGE_INLINE size_t TileFloats(int64_t head_dim) { return 4 * kTileKeys * (size_t)head_dim; }

// The same tile as one contiguous segment in `memory` when it is not float32 already. `values`: not only keys.
void ReadTile(const KeyLayout& layout, const KeyTile& raw, bool values, float* memory, KeyTile* tile) {
  float *k = memory, *v = memory + kTileKeys * layout.head_dim, *scale = v + kTileKeys * layout.head_dim;
  tile->segments[0] = {k, v, nullptr, nullptr, raw.segments[0].position, raw.n_keys, nullptr, nullptr};
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
      const char *codes = values ? from.v_raw : from.k_raw, *lower = values ? from.v_lower : from.k_lower;
      for (int64_t i = row * row_bytes; i < (row + n) * row_bytes; i += 64)
        __builtin_prefetch(codes + i, 0, 2);  // into the second nearest cache: the nearest is full
      for (int64_t i = row * row_bytes; lower != nullptr && i < (row + n) * row_bytes; i += 64)
        __builtin_prefetch(lower + i, 0, 2);
      count -= n;
      row += n;
      if (row == from.count) {
        ++segment;
        row = 0;
      }
    }
  }
};

// Lines of the keys or values that are read next, to be fetched a few at a time: a burst of them would fill the
// processor's list of outstanding misses, and the arithmetic would wait.
struct LineFetch {
  const char* rows[kTileKeys];
  int64_t n_lines;  // of each row

  void Aim(const KeyTile& tile, bool values, int64_t row_bytes) {
    int64_t n = 0;
    for (int s = 0; s < tile.n_segments; ++s) {
      const char* row = values ? tile.segments[s].v_raw : tile.segments[s].k_raw;
      for (int64_t i = 0; i < tile.segments[s].count; ++i, row += row_bytes) rows[n++] = row;
    }
    // Rows that begin within a line end in one more; tensors are aligned to 16 bytes only.
    n_lines = n > 0 ? ((uintptr_t)rows[0] % 64 + row_bytes + 63) / 64 : 0;
    for (int64_t i = n; i < kTileKeys && n > 0; ++i) rows[i] = rows[n - 1];
  }
  // One part of `n_parts` of the lines of row `key`.
  DLM_EDGE_INLINE void Part(int64_t key, int64_t part, int64_t n_parts) const {
    for (int64_t i = n_lines * part / n_parts; i < n_lines * (part + 1) / n_parts; ++i)
      __builtin_prefetch(rows[key] + 64 * i, 0, 2);
  }
};

}  // namespace
}  // namespace dlm_edge
