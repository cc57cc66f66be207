// The end of a sparse attention call: parts of split key ranges, then prefix and window, are merged by their
// log-sum-exp (FlashBlock, arXiv 2602.05305), and the new state is stored. See sparse_attention.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "sparse_attention.h"

namespace dlm_edge {
namespace {

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// One row of a task's partial result.
struct Part {
  const float* weighted;
  float row_max, row_sum;
};

Part PartOf(const RowTask& task, int64_t row) {
  const int64_t rows = task.rows.row_end - task.rows.row_begin, in_task = row - task.rows.row_begin;
  const float* const row_max = task.partial + rows * task.rows.head_dim;
  return {task.partial + in_task * task.rows.head_dim, row_max[in_task], row_max[rows + in_task]};
}

int64_t ChunkOf(const RowChunks& chunks, int64_t row) {
  int64_t chunk = 0;
  while (row >= chunks.End(chunk)) ++chunk;
  return chunk;
}

}  // namespace

void SparsePlan::Run(int phase, size_t index) const {
  if (phase == kMeasure) return kernel_->measure(mass_tasks_[index]);
  kernel_->attend(tasks_[index]);
  const int64_t head = task_heads_[index];
  if (n_left_[head].fetch_sub(1, std::memory_order_acq_rel) == 1) Merge(head);
}

// The prefix result of one active row, normalised, to `out`; returns its log-sum-exp in base 2.
float SparsePlan::MergeParts(const Head& head, int64_t row, float* out) const {
  const int64_t dim = arguments_.head_dim, n_chunks = head.prefix_rows.n_chunks;
  std::fill_n(out, dim, 0.0f);
  if (head.n_splits == 0) return -std::numeric_limits<float>::infinity();
  const RowTask* const first = &tasks_[head.first_prefix_task + ChunkOf(head.prefix_rows, row)];
  float row_max = PartOf(*first, row).row_max;
  for (int64_t p = 1; p < head.n_splits; ++p) row_max = std::max(row_max, PartOf(first[p * n_chunks], row).row_max);
  float row_sum = 0;
  for (int64_t p = 0; p < head.n_splits; ++p) {
    const Part part = PartOf(first[p * n_chunks], row);
    row_sum += std::exp2(part.row_max - row_max) * part.row_sum;
  }
  for (int64_t p = 0; p < head.n_splits; ++p) {
    const Part part = PartOf(first[p * n_chunks], row);
    const float weight = std::exp2(part.row_max - row_max) / row_sum;
    for (int64_t d = 0; d < dim; ++d) out[d] += weight * part.weighted[d];
  }
  return row_max + std::log2(row_sum);
}

void SparsePlan::Merge(int64_t kv_head) const {
  const SparseArguments& a = arguments_;
  const Head& head = heads_[kv_head];
  const int64_t group = a.n_heads / a.n_kv_heads, dim = a.head_dim;
  for (int64_t i = 0; i < std::max(a.q_len, a.n_rows); ++i) {
    for (int64_t g = 0; g < group; ++g) {
      const int64_t q_head = kv_head * group + g, state = q_head * a.n_rows + i;
      const bool is_stored = i < a.n_rows, is_active = i < a.q_len && head.rank[i] >= 0;
      const float* prefix = head.row;
      float lse;
      if (is_active) {
        const int64_t row = head.rank[i] * group + g;
        float* const result = is_stored ? a.new_prefix_out + state * dim : head.row;
        head.row_lse[row] = MergeParts(head, row, result);
        lse = head.row_lse[row] * kLn2;
        prefix = result;
      } else {  // then it is stored
        prefix = a.prefix_out + state * dim;
        lse = a.prefix_lse[state];
        if (a.new_prefix_out != a.prefix_out) std::memcpy(a.new_prefix_out + state * dim, prefix, dim * sizeof(float));
      }
      if (is_stored) a.new_prefix_lse[state] = lse;
      if (i >= a.q_len) continue;
      // Active rows too use the rounded log-sum-exp: a row that reuses its result later gets the same bits.
      const int64_t row = i * group + g;
      const Part window = PartOf(tasks_[head.first_window_task + ChunkOf(head.window_rows, row)], row);
      const float window_lse = window.row_max + std::log2(window.row_sum);
      const float share = 1.0f / (1.0f + std::exp2(window_lse - lse * kLog2E));
      const float weight = (1.0f - share) / window.row_sum;
      float* const out = a.out + i * a.n_heads * dim + q_head * dim;
      for (int64_t d = 0; d < dim; ++d) out[d] = share * prefix[d] + weight * window.weighted[d];
    }
  }
}

}  // namespace dlm_edge
