// See pattern_plan.h.
#include "pattern_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "simd.h"

namespace dlm_edge {
namespace {

// Sets kept[i] to 1 at the `count` blocks of [begin, end) with the largest scores; of equal ones the lower index first.
void KeepLargest(const float* scores, int64_t begin, int64_t end, int64_t count, uint8_t* kept) {
  static thread_local std::vector<int64_t> order;
  order.resize(end - begin);
  std::iota(order.begin(), order.end(), begin);
  count = std::min(count, end - begin);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  for (int64_t i = 0; i < count; ++i) kept[order[i]] = 1;
}

}  // namespace

void PatternPlan::Build(const PatternArguments& arguments) {
  arguments_ = arguments;
  const PatternArguments& a = arguments_;
  CountPairs();
  const size_t slots = a.n_heads * a.n_slots * a.n_slots;
  if (a.mode == kPatternKeep) {
    std::memset(a.new_pattern, 0, slots);
  } else if (a.new_pattern != a.pattern) {
    std::memcpy(a.new_pattern, a.pattern, slots);
  }
  if (a.mode != kPatternDense) return;
  AttentionArguments dense{};
  dense.n_heads = a.n_heads;
  dense.n_kv_heads = a.n_kv_heads;
  dense.q_len = a.q_len;
  dense.head_dim = a.head_dim;
  dense.attn_block = std::numeric_limits<int64_t>::max();
  dense.scale = a.scale;
  dense.q = a.q;
  dense.k = a.k;
  dense.v = a.v;
  dense.out = a.out;
  dense_.Build(dense);
}

void PatternPlan::CountPairs() const {
  const PatternArguments& a = arguments_;
  const int64_t n_blocks = a.n_blocks(), whole = a.n_heads * n_blocks * n_blocks;
  int64_t read = a.mode == kPatternReuse ? 0 : whole;
  if (a.mode == kPatternReuse)
    for (int64_t head = 0; head < a.n_heads; ++head)
      for (int64_t block = 0; block < n_blocks; ++block) {
        const uint8_t* kept = a.pattern + (head * a.n_slots + block) * a.n_slots;
        read += std::count_if(kept, kept + n_blocks, [](uint8_t is_kept) { return is_kept != 0; });
      }
  a.stats[0] = static_cast<float>(a.n_kv_heads * a.q_len);
  a.stats[1] = static_cast<float>(read);
  a.stats[2] = static_cast<float>(whole);
  a.stats[3] = 0.0f;
}

size_t PatternPlan::n_tasks(int phase) const {
  if (arguments_.mode == kPatternDense) return dense_.n_tasks(phase);
  return phase == kAttend ? arguments_.n_heads * arguments_.n_blocks() : 0;
}

void PatternPlan::Run(int phase, size_t index) const {
  if (arguments_.mode == kPatternDense) return dense_.Run(phase, index);
  const int64_t head = index / arguments_.n_blocks(), block = index % arguments_.n_blocks();
  return arguments_.mode == kPatternKeep ? ReadAllAndChoose(head, block) : ReadKept(head, block);
}

// Without keys.
RowTask PatternPlan::TaskOf(int64_t head, int64_t block) const {
  const PatternArguments& a = arguments_;
  const int64_t begin = block * a.block_size, end = std::min(a.q_len - begin, a.block_size) + begin;
  RowTask task{};
  task.rows = {a.q + head * a.q_len * a.head_dim, nullptr, 1, a.q_len, a.head_dim, begin, end};
  task.scale_log2 = a.scale * 1.44269504088896341f;
  task.out = a.out + head * a.head_dim;
  task.out_stride = a.n_heads * a.head_dim;
  return task;
}

void PatternPlan::ReadKept(int64_t head, int64_t block) const {
  static thread_local std::vector<KeyRange> ranges;
  const PatternArguments& a = arguments_;
  const int64_t n_blocks = a.n_blocks(), shared = head / (a.n_heads / a.n_kv_heads) * a.q_len * a.head_dim;
  const uint8_t* kept = a.new_pattern + (head * a.n_slots + block) * a.n_slots;
  ranges.clear();
  for (int64_t first = 0, last; first < n_blocks; first = last) {
    for (last = first + 1; last < n_blocks && (kept[last] != 0) == (kept[first] != 0);) ++last;
    if (kept[first] == 0) continue;
    const int64_t begin = first * a.block_size, end = last == n_blocks ? a.q_len : last * a.block_size;
    const int64_t offset = shared + begin * a.head_dim;
    ranges.push_back({a.k + offset, a.v + offset, begin, end - begin});
  }
  RowTask task = TaskOf(head, block);
  task.ranges = ranges.data();
  task.n_ranges = static_cast<int64_t>(ranges.size());
  if (!ranges.empty()) return ChosenKernel()->attend(task);
  for (int64_t row = task.rows.row_begin; row < task.rows.row_end; ++row)
    std::fill_n(task.out + row * task.out_stride, a.head_dim, 0.0f);
}

void PatternPlan::ReadAllAndChoose(int64_t head, int64_t block) const {
  static thread_local std::vector<float> memory;
  const PatternArguments& a = arguments_;
  const int64_t n_blocks = a.n_blocks(), shared = head / (a.n_heads / a.n_kv_heads) * a.q_len * a.head_dim;
  const KeyRange all{a.k + shared, a.v + shared, 0, a.q_len};
  RowTask task = TaskOf(head, block);
  const int64_t n_rows = task.rows.row_end - task.rows.row_begin;
  memory.resize(n_rows * (a.head_dim + 2) + n_blocks);
  task.ranges = &all;
  task.n_ranges = 1;
  task.partial = memory.data();
  ChosenKernel()->attend(task);

  float *lse = task.partial + n_rows * a.head_dim, *row_sum = lse + n_rows, *means = row_sum + n_rows;
  for (int64_t row = 0; row < n_rows; ++row) {
    float* const out = task.out + (task.rows.row_begin + row) * task.out_stride;
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] = task.partial[row * a.head_dim + d] / row_sum[row];
    lse[row] += std::log2(row_sum[row]);
  }
  ChosenKernel()->pool({task.rows, task.scale_log2, lse, all.k, a.q_len, a.block_size, means});
  for (int64_t i = 0; i < n_blocks; ++i)
    if (!(means[i] >= 0.0f)) means[i] = -1.0f;  // NaN has no place in an order
  means[n_blocks - 1] *= static_cast<float>(a.block_size) / (a.q_len - (n_blocks - 1) * a.block_size);
  uint8_t* const kept = a.new_pattern + (head * a.n_slots + block) * a.n_slots;
  const int64_t border = std::min(a.n_prompt, n_blocks);
  KeepLargest(means, 0, border, a.n_prompt_kept, kept);
  KeepLargest(means, border, n_blocks, a.n_others_kept, kept);
}

}  // namespace dlm_edge
