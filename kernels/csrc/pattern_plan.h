// PatternAttention on the CPU, float32: attention of a sequence to itself over kept pairs of blocks. Arithmetic only.
// The definition is kernels/pattern_attention/reference.py.
//
// q        [n_heads, q_len, head_dim]
// k, v     [n_kv_heads, q_len, head_dim]
// pattern  [n_heads, n_slots, n_slots], n_slots >= ceil(q_len / block_size)
// out      [q_len, n_heads * head_dim], every element is written
//
// new_pattern may be the memory of pattern. A task is one block of queries of one query head, whatever the number of
// threads; a dense call without a choice is AttentionPlan's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.h"

namespace dlm_edge {

constexpr int64_t kPatternDense = 0, kPatternReuse = 3, kPatternKeep = 4;  // the policy's modes

struct PatternArguments {
  int64_t n_heads, n_kv_heads, q_len, head_dim, n_slots;
  int64_t mode, n_prompt_kept, n_others_kept, n_prompt, block_size;
  float scale;
  const float *q, *k, *v;
  const uint8_t* pattern;
  float* out;
  uint8_t* new_pattern;
  float* stats;  // [4]

  int64_t n_blocks() const { return (q_len - 1) / block_size + 1; }
};

class PatternPlan {
 public:
  enum { kAttend, kMerge, kPhases };

  void Build(const PatternArguments& arguments);
  size_t n_tasks(int phase) const;
  void Run(int phase, size_t index) const;

 private:
  void CountPairs() const;
  RowTask TaskOf(int64_t head, int64_t block) const;
  void ReadKept(int64_t head, int64_t block) const;
  void ReadAllAndChoose(int64_t head, int64_t block) const;

  PatternArguments arguments_{};
  AttentionPlan dense_;
};

}  // namespace dlm_edge
