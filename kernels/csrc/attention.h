// PrefixBlockAttention on the CPU, dense policy, float32. No ONNX Runtime types here: arithmetic only.
// The definition is kernels/prefix_block_attention/reference.py.
//
// q                  [n_heads, q_len, head_dim]        row-major, after norm and RoPE
// k, v               [n_kv_heads, q_len, head_dim]     keys and values of the window itself
// k_cache, v_cache   [n_kv_heads, capacity, head_dim]  only [0, cache_len) outside the window is ever read
// out                [q_len, n_heads * head_dim]       every element is written
// of one copy of the window.
//
// The caller owns all memory and has checked the shapes. Working memory is thread-local and kept between calls.
//
// One call is a Plan: a fixed list of independent tasks (kv head x rows x key range), then, where key ranges
// were split, independent merges. The list depends on the shapes only, never on the number of threads, so the
// results are the same bits on any machine that uses the same variant (simd.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "row_task.h"

namespace dlm_edge {

struct AttentionArguments {
  int64_t n_heads, n_kv_heads, q_len, head_dim, capacity;
  int64_t start, cache_len, attn_block;
  float scale;
  const float *q, *k, *v, *k_cache, *v_cache;
  float* out;
};

class AttentionPlan {
 public:
  enum { kAttend, kMerge, kPhases };  // merges after all tasks

  // Keeps a copy of the arguments; reuses the memory of earlier plans of the object.
  void Build(const AttentionArguments& arguments);
  size_t n_tasks(int phase) const { return phase == kAttend ? tasks_.size() : merges_.size(); }
  void Run(int phase, size_t index) const;

 private:
  struct Merge {
    size_t first_task, n_parts;
  };
  void RunMerge(const Merge& merge) const;
  void AddRows(int64_t kv_head, int64_t row_begin, int64_t row_end, int64_t wanted_splits);

  AttentionArguments arguments_{};
  const TileKernel* kernel_ = nullptr;
  std::vector<RowTask> tasks_;
  std::vector<KeyRange> ranges_;  // of all tasks, in order
  std::vector<Merge> merges_;
  std::vector<float> partials_;
};

}  // namespace dlm_edge
