// How one attention call is cut into tasks, and how split key ranges are put together again. See attention.h.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace dlm_edge {
namespace {

// Enough tasks that a pool of eight stays busy when some threads are slow; more only adds merges.
constexpr int64_t kWantedTasks = 16;
// Key tiles loaded once serve up to this many row tiles.
constexpr int64_t kMaxTilesPerTask = 4;
// Below this many keys a split costs more than it gives.
constexpr int64_t kMinKeysPerSplit = 256;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t VisibleEnd(int64_t position, int64_t attn_block) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const int64_t block = position / attn_block;
  return block >= kMax / attn_block ? kMax : (block + 1) * attn_block;
}

void AttentionPlan::Build(const AttentionArguments& arguments) {
  arguments_ = arguments;
  kernel_ = ChosenKernel();
  tasks_.clear();
  ranges_.clear();
  merges_.clear();

  const int64_t rows = arguments.n_heads / arguments.n_kv_heads * arguments.q_len;
  const int64_t n_vectors = CeilDiv(rows, kernel_->lanes);
  const int64_t n_tiles = CeilDiv(n_vectors, kernel_->max_row_vectors);
  const int64_t n_chunks = CeilDiv(n_tiles, kMaxTilesPerTask);
  const int64_t splits = CeilDiv(kWantedTasks, n_chunks * arguments.n_kv_heads);
  // Later rows see more keys: the long tasks go first, so that no thread starts one at the end.
  for (int64_t chunk = n_chunks; chunk-- > 0;) {
    const int64_t row_begin = chunk * n_vectors / n_chunks * kernel_->lanes;
    const int64_t row_end = std::min(rows, (chunk + 1) * n_vectors / n_chunks * kernel_->lanes);
    for (int64_t head = 0; head < arguments.n_kv_heads; ++head) AddRows(head, row_begin, row_end, splits);
  }

  const KeyRange* range = ranges_.data();
  for (RowTask& task : tasks_) {
    task.ranges = range;
    range += task.n_ranges;
  }
  size_t floats = 0;
  for (const Merge& merge : merges_) {
    const QueryRows& rows = tasks_[merge.first_task].rows;
    floats += merge.n_parts * (rows.row_end - rows.row_begin) * (rows.head_dim + 2);
  }
  if (partials_.size() < floats) partials_.resize(floats);
  float* next = partials_.data();
  for (const Merge& merge : merges_) {
    for (size_t part = 0; part < merge.n_parts; ++part) {
      RowTask& task = tasks_[merge.first_task + part];
      task.partial = next;
      next += (task.rows.row_end - task.rows.row_begin) * (task.rows.head_dim + 2);
    }
  }
}

void AttentionPlan::AddRows(int64_t kv_head, int64_t row_begin, int64_t row_end, int64_t wanted_splits) {
  const AttentionArguments& a = arguments_;
  const int64_t group = a.n_heads / a.n_kv_heads;
  const int64_t seen_end = VisibleEnd(a.start + (row_end - 1) / group, a.attn_block);
  const int64_t window_end = a.start + a.q_len;
  const int64_t cache_head = kv_head * a.capacity;

  KeyRange ranges[3];  // cache before the window, the window, cache behind it
  int n_ranges = 0;
  int64_t n_keys = 0;
  auto add_range = [&](const float* k, const float* v, int64_t first_row, int64_t begin, int64_t end) {
    end = std::min(end, seen_end);
    if (begin >= end) return;
    ranges[n_ranges++] = {k + first_row * a.head_dim, v + first_row * a.head_dim, begin, end - begin};
    n_keys += end - begin;
  };
  add_range(a.k_cache, a.v_cache, cache_head, 0, std::min(a.start, a.cache_len));
  add_range(a.k, a.v, kv_head * a.q_len, a.start, window_end);
  add_range(a.k_cache, a.v_cache, cache_head + window_end, window_end, a.cache_len);

  RowTask task{};
  const float* q = a.q + kv_head * group * a.q_len * a.head_dim;
  task.rows = {q, nullptr, group, a.q_len, a.head_dim, row_begin, row_end};
  task.start = a.start;
  task.attn_block = a.attn_block;
  task.scale_log2 = a.scale * 1.44269504088896341f;
  task.out = a.out + kv_head * group * a.head_dim;
  task.out_stride = a.n_heads * a.head_dim;

  const int64_t splits = std::clamp(n_keys / kMinKeysPerSplit, int64_t{1}, wanted_splits);
  if (splits > 1) merges_.push_back({tasks_.size(), static_cast<size_t>(splits)});
  for (int64_t split = 0; split < splits; ++split) {
    int64_t skip = n_keys * split / splits;
    int64_t take = n_keys * (split + 1) / splits - skip;
    task.n_ranges = 0;
    for (int i = 0; i < n_ranges && take > 0; ++i) {
      const int64_t from = std::min(skip, ranges[i].count);
      const int64_t count = std::min(take, ranges[i].count - from);
      skip -= from;
      take -= count;
      if (count == 0) continue;
      const int64_t offset = from * a.head_dim;
      ranges_.push_back({ranges[i].k + offset, ranges[i].v + offset, ranges[i].position + from, count});
      ++task.n_ranges;
    }
    tasks_.push_back(task);
  }
}

void AttentionPlan::Run(int phase, size_t index) const {
  if (phase == kAttend) kernel_->attend(tasks_[index]);
  if (phase == kMerge) RunMerge(merges_[index]);
}

void AttentionPlan::RunMerge(const Merge& merge) const {
  const RowTask* parts = &tasks_[merge.first_task];
  const RowTask& task = parts[0];
  const int64_t rows = task.rows.row_end - task.rows.row_begin, dim = task.rows.head_dim;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at_max = rows * dim + row, at_sum = at_max + rows;
    float row_max = parts[0].partial[at_max];
    for (size_t p = 1; p < merge.n_parts; ++p) row_max = std::max(row_max, parts[p].partial[at_max]);
    float row_sum = 0;
    for (size_t p = 0; p < merge.n_parts; ++p)
      row_sum += std::exp2(parts[p].partial[at_max] - row_max) * parts[p].partial[at_sum];
    const int64_t group = task.rows.group, i = (task.rows.row_begin + row) / group,
                  g = (task.rows.row_begin + row) % group;
    float* out = task.out + i * task.out_stride + g * dim;
    for (size_t p = 0; p < merge.n_parts; ++p) {
      const float weight = std::exp2(parts[p].partial[at_max] - row_max) / row_sum;
      const float* weighted = parts[p].partial + row * dim;
      for (int64_t d = 0; d < dim; ++d) out[d] = weight * weighted[d] + (p == 0 ? 0.0f : out[d]);
    }
  }
}

}  // namespace dlm_edge
