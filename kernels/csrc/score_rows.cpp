// See score_rows.h. Two passes over a row, the second one out of the processor's cache; inner loops: score_tiles.h.
#include "score_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "simd.h"

namespace dlm_edge {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

using Ids = std::vector<int64_t>;

// A row chunk by chunk. One that is not whole, or holds an id that is left out, is a copy with -infinity in the gaps.
class Chunks {
 public:
  // `left_out` rises, within the vocabulary.
  Chunks(const float* row, int64_t vocab_size, const Ids& left_out)
      : row_(row), vocab_size_(vocab_size), next_out_(left_out.begin()), end_out_(left_out.end()) {}

  // The chunk at `begin`, valid until the next call; chunks are asked for in order.
  const float* At(int64_t begin) {
    const int64_t end = std::min(begin + kScoreChunk, vocab_size_);
    const bool has_gap = next_out_ != end_out_ && *next_out_ < end;
    if (end - begin == kScoreChunk && !has_gap) return row_ + begin;
    std::memcpy(copy_, row_ + begin, (end - begin) * sizeof(float));
    std::fill(copy_ + (end - begin), copy_ + kScoreChunk, kNothing);
    for (; next_out_ != end_out_ && *next_out_ < end; ++next_out_) copy_[*next_out_ - begin] = kNothing;
    return copy_;
  }

 private:
  const float* row_;
  int64_t vocab_size_;
  Ids::const_iterator next_out_, end_out_;
  alignas(64) float copy_[kScoreChunk];
};

struct Largest {
  float value;  // NaN where the row holds one
  int64_t id;   // the lowest; -1 unless the value is above -infinity
};

Largest FindLargest(const TileKernel& kernel, const float* row, int64_t vocab_size, const Ids& forbidden) {
  Chunks chunks(row, vocab_size, forbidden);
  Largest found{kNothing, -1};
  for (int64_t begin = 0; begin < vocab_size; begin += kScoreChunk) {
    const float value = kernel.largest(chunks.At(begin));
    if (std::isnan(value)) return {value, -1};
    if (value > found.value) found = {value, begin};
  }
  if (found.id < 0) return found;
  while (row[found.id] != found.value || std::binary_search(forbidden.begin(), forbidden.end(), found.id)) ++found.id;
  return found;
}

// Of all but the largest, whose own weight is 1.
ScoreSums Weigh(const TileKernel& kernel, const float* row, int64_t vocab_size, const Ids& forbidden, Largest largest) {
  Ids left_out = forbidden;
  left_out.insert(std::upper_bound(left_out.begin(), left_out.end(), largest.id), largest.id);
  Chunks chunks(row, vocab_size, left_out);
  ScoreSums sums{0.0, 0.0, kNothing};
  for (int64_t begin = 0; begin < vocab_size; begin += kScoreChunk)
    kernel.weigh(chunks.At(begin), largest.value, &sums);
  return sums;
}

}  // namespace

void ScoreRows(const ScoreArguments& a) {
  const TileKernel& kernel = *ChosenKernel();
  Ids forbidden;
  std::copy_if(a.forbidden, a.forbidden + a.n_forbidden, std::back_inserter(forbidden),
               [&](int64_t id) { return id >= 0 && id < a.vocab_size; });
  std::sort(forbidden.begin(), forbidden.end());
  for (int64_t i = 0; i < a.n_rows; ++i) {
    const Largest largest = FindLargest(kernel, a.rows[i], a.vocab_size, forbidden);
    const bool is_sound = std::isfinite(largest.value);
    a.ids[i] = is_sound ? largest.id : -1;
    a.largest[i] = largest.value;
    a.top1_prob[i] = a.top2_prob[i] = a.entropy[i] = std::numeric_limits<double>::quiet_NaN();
    if (!is_sound) continue;
    const ScoreSums sums = Weigh(kernel, a.rows[i], a.vocab_size, forbidden, largest);
    const double total = 1.0 + sums.weights;
    a.top1_prob[i] = 1.0 / total;
    a.top2_prob[i] = std::exp(static_cast<double>(sums.second)) / total;
    a.entropy[i] = std::log1p(sums.weights) - sums.weighted / total;
  }
}

}  // namespace dlm_edge
