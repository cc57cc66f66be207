// Tiles of coded keys and values in 16-bit fixed point: code * scale + low in units of the largest number at hand.
//
// An integer is code * step + first with 16-bit step and first, off by at most 1.5 units: half for each of the three
// roundings. The unit of a group of keys is chosen so that no dot product with a row of length kRowLength leaves 32
// bits; that of a tile of values so that no value leaves 16. A number that is not finite makes the unit NaN.
#pragma once

#include "key_tiles.h"

namespace dlm_edge {
namespace {

static_assert(kLanes == 16, "the intrinsics below are those of 512 bits");

typedef uint16_t ShortVec __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint64_t LongVec __attribute__((vector_size(4 * kLanes), may_alias));

// Lengths in units: (kRowLength + rounding) * (kKeyLength + rounding) < 2^31 up to a head_dim of 1024.
constexpr float kRowLength = 32700.0f, kKeyLength = 65000.0f;
constexpr float kLargest = 30000.0f;  // so that step, first and their sum fit in 16 bits

struct FixedTile {
  int16_t* k;        // [n_keys, head_dim], like all of it aligned for vectors
  int16_t* v;        // [ceil(n_keys / 2), head_dim, 2]: the values of two neighbouring keys side by side
  float* k_unit;     // [n_keys]
  int16_t* step;     // [max(head_dim, kTileKeys * n_groups)], working memory like the following
  int16_t* first;    // as long as step
  float* scale_low;  // twice as long
  float v_unit;
  int64_t n_keys;
};

DLM_EDGE_INLINE bool FitsFixedTiles(const KeyCache* cache, int64_t head_dim) {
  return cache != nullptr && cache->type != kFloatCache && cache->type != kHalfCache && head_dim % 32 == 0 &&
         head_dim <= 1024 && cache->v_group % 16 == 0;
}

// At most 304 bytes for each channel and 600 more: less than TileFloats, in whose memory it may lie.
FixedTile PlaceFixedTile(int64_t head_dim, int64_t v_group, char* memory) {
  const int64_t n_scales = kTileKeys * (head_dim / v_group), width = n_scales > head_dim ? n_scales : head_dim;
  FixedTile tile;
  auto take = [&memory](size_t bytes) {
    char* const taken = memory;
    memory += Aligned(bytes);
    return taken;
  };
  tile.k = reinterpret_cast<int16_t*>(take(kTileKeys * head_dim * sizeof(int16_t)));
  tile.v = reinterpret_cast<int16_t*>(take(kTileKeys * head_dim * sizeof(int16_t)));
  tile.k_unit = reinterpret_cast<float*>(take(kTileKeys * sizeof(float)));
  tile.step = reinterpret_cast<int16_t*>(take(width * sizeof(int16_t)));
  tile.first = reinterpret_cast<int16_t*>(take(width * sizeof(int16_t)));
  tile.scale_low = reinterpret_cast<float*>(take(2 * width * sizeof(float)));
  tile.v_unit = 0;
  tile.n_keys = 0;
  return tile;
}

// To the nearest integer; out of range, or NaN: some integer.
DLM_EDGE_INLINE IntVec Rounded(Vec values) { return (IntVec)_mm512_maskz_cvtps_epi32(0xffff, (__m512)values); }

DLM_EDGE_INLINE void StoreShorts(Vec values, int16_t* to) {
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)Rounded(values)));
}

// scale_low: `count` scales, then as many lows; count is a multiple of 16. Codes are centred first: the signed product
// of AVX-512 is the one that rounds. Returns the unit; a vector of all the numbers is no longer than `length` units.
float FixScales(CacheType type, const float* scale_low, int64_t count, float length, int16_t* step, int16_t* first) {
  const float *scale = scale_low, *low = scale_low + count;
  const float last_code = type == kNibbleCache ? 15.0f : 255.0f, middle = type == kNibbleCache ? 8.0f : 128.0f;
  Vec largest_lanes = {}, squares = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec begin = Load(low + i), end = begin + last_code * Load(scale + i);
    const Vec size = Max(begin < 0.0f ? -begin : begin, end < 0.0f ? -end : end);  // NaN when either is
    largest_lanes = Max(largest_lanes, size);
    squares += size * size;
  }
  float largest = 0.0f, sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) {
    largest = largest_lanes[lane] > largest ? largest_lanes[lane] : largest;
    sum += squares[lane];
  }
  const float by_size = largest / kLargest, by_length = __builtin_sqrtf(sum) / length;
  const float unit = (by_size > by_length ? by_size : by_length) + (sum - sum);
  const float inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec half_range = middle * (Load(scale + i) * inverse);
    StoreShorts(half_range, step + i);
    StoreShorts(Load(low + i) * inverse + half_range, first + i);
  }
  return unit;
}

// `codes`: in the upper bits of each 16, not centred yet.
DLM_EDGE_INLINE ShortVec Fix(ShortVec codes, ShortVec step, ShortVec first) {
  return (ShortVec)_mm512_mulhrs_epi16((__m512i)(codes ^ 0x8000), (__m512i)step) + first;
}

// 32 neighbouring codes from channel d on.
template <CacheType type>
DLM_EDGE_INLINE ShortVec UpperCodes(const CodesOf<type>& row, int64_t d) {
  if constexpr (type == kPlanesCache)
    return UpperCodes<kNibbleCache>({row.codes, nullptr}, d) | UpperCodes<kNibbleCache>({row.lower, nullptr}, d) >> 4;
  const uint8_t* const codes = row.codes + (type == kByteCache ? d : d / 2);
  if constexpr (type == kByteCache)
    return (ShortVec)_mm512_maskz_cvtepu8_epi16(~0u, _mm256_loadu_si256((const __m256i*)codes)) << 8;
  const UintVec two = (UintVec)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)codes));
  return (ShortVec)(two | two << 12) << 12;
}

// 16 neighbouring codes from channel d on, each in 32 bits.
template <CacheType type>
DLM_EDGE_INLINE UintVec SpreadCodes(const CodesOf<type>& row, int64_t d) {
  if constexpr (type == kPlanesCache)
    return SpreadCodes<kNibbleCache>({row.codes, nullptr}, d) << 4 | SpreadCodes<kNibbleCache>({row.lower, nullptr}, d);
  const uint8_t* const codes = row.codes + (type == kByteCache ? d : d / 2);
  if constexpr (type == kByteCache)
    return (UintVec)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)codes));
  const LongVec two = (LongVec)_mm512_maskz_cvtepu8_epi64(0xff, _mm_loadl_epi64((const __m128i*)codes));
  return (UintVec)(two | two << 28) & 15;
}

template <CacheType type>
void FixKeys(const KeyLayout& layout, const KeyTile& raw, FixedTile* tile) {
  const KeyCache& cache = *layout.cache;
  const int64_t dim = layout.head_dim;
  int16_t* out = tile->k;
  float *unit = tile->k_unit, group_unit = 0;
  int64_t group = -1;
  for (int s = 0; s < raw.n_segments; ++s) {
    CodesOf<type> row{(const uint8_t*)raw.segments[s].k_raw, (const uint8_t*)raw.segments[s].k_lower};
    for (int64_t key = 0; key < raw.segments[s].count; ++key, row.Advance(layout.row_bytes), out += dim) {
      const int64_t its_group = (raw.segments[s].position + key) / cache.k_group;
      if (its_group != group) {
        group = its_group;
        ReadScales(cache, cache.k_scale + group * dim, cache.k_low + group * dim, dim, tile->scale_low,
                   tile->scale_low + dim);
        group_unit = FixScales(type, tile->scale_low, dim, kKeyLength, tile->step, tile->first);
      }
      *unit++ = group_unit;
      for (int64_t d = 0; d < dim; d += 32) {
        const ShortVec step = *(const ShortVec*)(tile->step + d), first = *(const ShortVec*)(tile->first + d);
        *(ShortVec*)(out + d) = Fix(UpperCodes<type>(row, d), step, first);
      }
    }
  }
}

template <CacheType type>
void FixValues(const KeyLayout& layout, const KeyTile& raw, FixedTile* tile) {
  const KeyCache& cache = *layout.cache;
  const int64_t dim = layout.head_dim, width = cache.v_group, n_groups = dim / width, n_keys = raw.n_keys;
  const int64_t n_scales = n_keys * n_groups;
  const int64_t count = ((n_keys + n_keys % 2) * n_groups + kLanes - 1) / kLanes * kLanes;
  CodesOf<type> rows[kTileKeys + 1];
  float* scale = tile->scale_low;
  float* low = scale + count;
  int64_t key = 0;
  for (int s = 0; s < raw.n_segments; ++s) {
    const KeySegment& segment = raw.segments[s];
    ReadScales(cache, cache.v_scale + segment.position * n_groups, cache.v_low + segment.position * n_groups,
               segment.count * n_groups, scale + key * n_groups, low + key * n_groups);
    CodesOf<type> row{(const uint8_t*)segment.v_raw, (const uint8_t*)segment.v_lower};
    for (int64_t i = 0; i < segment.count; ++i, row.Advance(layout.row_bytes)) rows[key++] = row;
  }
  rows[n_keys] = rows[n_keys - 1];  // an odd number of keys: beside the last lie zeros
  memset(scale + n_scales, 0, (count - n_scales) * sizeof(float));
  memset(low + n_scales, 0, (count - n_scales) * sizeof(float));
  tile->v_unit = FixScales(type, scale, count, __builtin_inff(), tile->step, tile->first);

  auto pair = [n_groups](const int16_t* of_two) {
    return (ShortVec)(UintVec{} + ((uint16_t)of_two[0] | (uint32_t)(uint16_t)of_two[n_groups] << 16));
  };
  constexpr int kShift = type == kNibbleCache ? 12 : 8;
  int16_t* out = tile->v;
  for (key = 0; key < n_keys; key += 2) {
    for (int64_t g = 0; g < n_groups; ++g) {
      const ShortVec step = pair(tile->step + key * n_groups + g), first = pair(tile->first + key * n_groups + g);
      for (int64_t d = g * width; d < (g + 1) * width; d += kLanes, out += 2 * kLanes) {
        const UintVec codes =
            SpreadCodes<type>(rows[key], d) << kShift | SpreadCodes<type>(rows[key + 1], d) << (kShift + 16);
        *(ShortVec*)out = Fix((ShortVec)codes, step, first);
      }
    }
  }
}

template <CacheType type>
void FixTileOf(const KeyLayout& layout, const KeyTile& raw, bool values, FixedTile* tile) {
  FixKeys<type>(layout, raw, tile);
  if (values) FixValues<type>(layout, raw, tile);
}

// `values`: not only keys.
void FixTile(const KeyLayout& layout, const KeyTile& raw, bool values, FixedTile* tile) {
  tile->n_keys = raw.n_keys;
  switch (layout.cache->type) {
    case kByteCache: return FixTileOf<kByteCache>(layout, raw, values, tile);
    case kNibbleCache: return FixTileOf<kNibbleCache>(layout, raw, values, tile);
    default: return FixTileOf<kPlanesCache>(layout, raw, values, tile);
  }
}

}  // namespace
}  // namespace dlm_edge
