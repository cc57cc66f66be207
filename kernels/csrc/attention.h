// PrefixBlockAttention on the CPU, dense policy, float32. No ONNX Runtime types here: arithmetic only.
// The definition is kernels/prefix_block_attention/reference.py.
//
// q                  [n_heads, q_len, head_dim]        row-major, after norm and RoPE
// k, v               [n_kv_heads, q_len, head_dim]     keys and values of the window itself
// k_cache, v_cache   [n_kv_heads, capacity, head_dim]  only [0, cache_len) outside the window is ever read
// out                [q_len, n_heads * head_dim]       every element is written
//
// The caller owns all memory and has checked the shapes. Working memory is thread-local and kept between calls.
//
// One call is a Plan: a fixed list of independent tasks (kv head x rows x key range), then, where key ranges
// were split, independent merges. The list depends on the shapes only, never on the number of threads, so the
// results are the same bits on any machine with the same vector width.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dlm_edge {

struct AttentionArguments {
  int64_t n_heads, n_kv_heads, q_len, head_dim, capacity;
  int64_t start, cache_len, attn_block;
  float scale;
  const float *q, *k, *v, *k_cache, *v_cache;
  float* out;
};

// Consecutive keys in memory, at consecutive absolute positions.
struct KeyRange {
  const float *k, *v;  // [count, head_dim]
  int64_t position, count;
};
constexpr int kMaxKeyRanges = 3;  // cache before the window, the window, cache behind it

// One kv head, some rows, some keys. The query heads that share a kv head form one matrix whose row
// i * group + g is query i of head g: neighbouring rows see nearly the same keys.
struct RowTask {
  const float* q;  // [group, q_len, head_dim]
  int64_t group, q_len, head_dim;
  int64_t row_begin, row_end;
  int64_t start, attn_block;
  float scale_log2;  // scale * log2(e): scores are kept in base 2
  KeyRange ranges[kMaxKeyRanges];
  int n_ranges;
  float* out;  // [q_len, out_stride], already at this kv head's first column
  int64_t out_stride;
  // Not null: write unnormalised results here instead of out, for a later merge.
  // weighted [rows, head_dim], then row_max [rows], then row_sum [rows], rows = row_end - row_begin.
  float* partial;
};

// One vector width. Rows are worked on in tiles of up to max_row_vectors * lanes.
struct TileKernel {
  const char* name;
  int lanes, max_row_vectors;
  void (*run)(const RowTask& task);
};
extern const TileKernel kPortableTiles;
#if defined(__x86_64__)
extern const TileKernel kAvx2Tiles;
extern const TileKernel kAvx512Tiles;
#endif

// "avx512", "avx2", "portable"; null chooses the best again. False: unknown, or not supported by this processor.
bool SetSimd(const char* name);
const char* SimdName();

// One past the last position that the query at `position` sees; saturates instead of overflowing.
int64_t VisibleEnd(int64_t position, int64_t attn_block);

class AttentionPlan {
 public:
  // Keeps a copy of the arguments; reuses the memory of earlier plans of the object.
  void Build(const AttentionArguments& arguments);
  size_t n_tasks() const { return tasks_.size(); }
  size_t n_merges() const { return merges_.size(); }
  void RunTask(size_t index) const;
  void RunMerge(size_t index) const;  // after all tasks

 private:
  struct Merge {
    size_t first_task, n_parts;
  };
  void AddRows(int64_t kv_head, int64_t row_begin, int64_t row_end, int64_t wanted_splits);

  AttentionArguments arguments_{};
  const TileKernel* kernel_ = nullptr;
  std::vector<RowTask> tasks_;
  std::vector<Merge> merges_;
  std::vector<float> partials_;
};

}  // namespace dlm_edge
