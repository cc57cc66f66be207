// PrefixBlockAttention on the CPU, active rows over selected pages. No ONNX Runtime types here: arithmetic only.
// The definition is sparse_prefix_block_attention in kernels/prefix_block_attention/reference.py.
//
// q                  [n_heads, q_len, head_dim]          row-major, after norm and RoPE
// k, v               [n_kv_heads, q_len, head_dim]       the window itself
// k_cache, v_cache   [n_kv_heads, capacity, head_dim]    float32, float16, bytes, or nibbles (head_dim / 2),
//                                                        of which k_lower, v_lower may hold a second plane
// k_scale, k_low     [n_kv_heads, capacity / k_group, head_dim]   float16, of codes only
// k_tail             [n_kv_heads, k_group, head_dim]              exact keys behind the last full group
// v_scale, v_low     [n_kv_heads, capacity, head_dim / v_group]   float16, of codes only
// active             [n_kv_heads, q_len]                 0: the row's stored result is used
// pages              [n_kv_heads, n_slots]               page p is [p, p + 1) * (capacity / n_slots) of the cache
// prefix_out         [n_heads, n_rows, head_dim]         stored results; prefix_lse [n_heads, n_rows]
// masses             [n_kv_heads, n_slots]
// out                [q_len, n_heads * head_dim]         every element of the outputs is written
// of one copy of the window.
//
// The new state may be the same memory as the old one. The caller owns all memory and has checked the shapes; rows from
// n_rows on are active. As in attention.h, the list of tasks does not depend on the number of threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "row_task.h"

namespace dlm_edge {

struct SparseArguments {
  int64_t n_heads, n_kv_heads, q_len, head_dim, capacity, n_slots, n_rows;
  int64_t start, cache_len, attn_block;
  float scale;
  bool measure;
  const float *q, *k, *v;
  CacheType cache_type;
  const void *k_cache, *v_cache;
  const uint16_t *k_scale, *k_low, *v_scale, *v_low;
  const float* k_tail;
  int64_t k_group, v_group;
  const void *k_lower, *v_lower;  // of kPlanesCache
  bool is_upper;                  // of kNibbleCache, see KeyCache
  const uint8_t *active, *pages;
  const float *prefix_out, *prefix_lse, *masses;
  float *out, *new_prefix_out, *new_prefix_lse, *new_masses;
};

// Rows in chunks that end at vectors.
struct RowChunks {
  int64_t n_rows, n_vectors, n_chunks, lanes;
  int64_t Begin(int64_t chunk) const { return chunk * n_vectors / n_chunks * lanes; }
  int64_t End(int64_t chunk) const { return chunk + 1 == n_chunks ? n_rows : Begin(chunk + 1); }
};

class SparsePlan {
 public:
  enum { kAttend, kMeasure, kPhases };  // each after all tasks of the one before

  // Keeps a copy of the arguments; reuses the memory of earlier plans of the object. Writes the new masses.
  void Build(const SparseArguments& arguments);
  size_t n_tasks(int phase) const { return phase == kAttend ? tasks_.size() : mass_tasks_.size(); }
  void Run(int phase, size_t index) const;

 private:
  struct Head {
    const int32_t* chosen;  // the active queries
    const int32_t* rank;    // [q_len]: place among them, or -1
    int64_t n_active;
    std::vector<KeyRange> ranges;  // of the selected pages, outside the window
    int64_t n_keys;
    RowChunks prefix_rows, window_rows;
    int64_t n_splits;
    size_t first_prefix_task, first_window_task;  // [split][chunk], [chunk]
    float* row_lse;                               // [n_active * group], base 2
    float* row;                                   // [head_dim], for results that are not stored
  };

  void ChooseRowsAndKeys();
  void AddPrefixTasks(int64_t kv_head);
  void AddWindowTasks(int64_t kv_head);
  void AddMassTasks(int64_t kv_head);
  void CountTasks();
  void GiveMemory();
  QueryRows RowsOf(int64_t kv_head) const;
  KeyRange RangeOf(int64_t kv_head, int64_t begin, int64_t end) const;
  void AppendOutsideWindow(int64_t kv_head, int64_t begin, int64_t end, std::vector<KeyRange>* ranges) const;
  KeyCache CacheOf(int64_t kv_head) const;
  void Merge(int64_t kv_head) const;
  float MergeParts(const Head& head, int64_t row, float* out) const;

  SparseArguments arguments_{};
  const TileKernel* kernel_ = nullptr;
  std::vector<Head> heads_;
  std::vector<KeyCache> caches_;
  std::vector<int32_t> rows_;  // chosen and rank of all heads
  std::vector<RowTask> tasks_;
  std::vector<size_t> task_ranges_;  // the first range of each task
  std::vector<int64_t> task_heads_;
  // Per kv head the tasks that are not done: who ends the last one merges the head, while its results are near.
  std::unique_ptr<std::atomic<size_t>[]> n_left_;
  int64_t n_left_heads_ = 0;
  std::vector<KeyRange> ranges_;
  std::vector<MassTask> mass_tasks_;
  std::vector<size_t> mass_ranges_;  // the first range of each mass task
  std::vector<int64_t> mass_heads_;
  std::vector<KeyRange> page_ranges_;
  std::vector<int64_t> page_of_range_;
  std::vector<float> memory_;
};

}  // namespace dlm_edge
