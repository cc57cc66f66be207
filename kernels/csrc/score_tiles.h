// What score_rows.cpp adds up over a chunk of logits: the arithmetic of kernels/score_rows/reference.py in float32, at
// most 64 numbers to a sum. The sums of a chunk go into float64.
#pragma once

#include "exp_parts.h"
#include "lane_sums.h"
#include "vectors.h"

namespace dlm_edge {
namespace {

// exp(x) for -87 <= x <= 0; finite, and of no use, for other finite x. With FMA or without.
DLM_EDGE_INLINE Vec ExpNegative(Vec x) {
  const ExpParts parts = SplitExp(x);
  return (Vec)((UintVec)parts.p + ((UintVec)parts.shifted << 23));  // times 2^n: the bits above n are shifted out
}

constexpr int kScoreSums = 4;  // so that the additions do not wait for each other
static_assert(kScoreChunk % (kScoreSums * kLanes) == 0, "a chunk is whole rounds");

DLM_EDGE_INLINE float LargestLane(Vec v) {
  float largest = v[0];
  for (int i = 1; i < kLanes; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// Of a chunk; NaN where it holds one.
float LargestLogit(const float* logits) {
  Vec largest[kScoreSums], unsound = {};
  for (Vec& each : largest) each = Vec{} - __builtin_inff();
  for (int64_t i = 0; i < kScoreChunk; i += kScoreSums * kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < kScoreSums; ++j) {
      const Vec x = Load(logits + i + j * kLanes);
      largest[j] = Max(x, largest[j]);  // drops NaN
      unsound = x == x ? unsound : x;
    }
  const float nan = SumLanes(unsound);
  return nan == nan ? LargestLane(Max(Max(largest[0], largest[1]), Max(largest[2], largest[3]))) : nan;
}

void WeighLogits(const float* logits, float largest, ScoreSums* sums) {
  Vec weights[kScoreSums] = {}, weighted[kScoreSums] = {}, second[kScoreSums];
  for (Vec& each : second) each = Vec{} - __builtin_inff();
  for (int64_t i = 0; i < kScoreChunk; i += kScoreSums * kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < kScoreSums; ++j) {
      const Vec x = Load(logits + i + j * kLanes) - largest;
      second[j] = Max(x, second[j]);
      const Vec kept = Max(x, Vec{} - 88.0f);  // -infinity * 0 would be NaN
      const Vec weight = x < -87.0f ? Vec{} : ExpNegative(kept);
      weights[j] += weight;
      weighted[j] += kept * weight;
    }
  sums->weights += SumLanes((weights[0] + weights[1]) + (weights[2] + weights[3]));
  sums->weighted += SumLanes((weighted[0] + weighted[1]) + (weighted[2] + weighted[3]));
  const float last = LargestLane(Max(Max(second[0], second[1]), Max(second[2], second[3])));
  sums->second = last > sums->second ? last : sums->second;
}

}  // namespace
}  // namespace dlm_edge
