// What PatternAttention takes, on the CPU and on the CUDA provider: its tensors, and what their shapes and numbers say.
#pragma once

#include <array>

#include "operator.h"
#include "pattern_plan.h"  // for the modes

namespace dlm_edge::pattern_inputs {

enum Index { kQ, kK, kV, kPolicy, kPattern, kInputCount };

// `real` is the type of queries, keys, values and output.
constexpr std::array<Input, kInputCount> Table(ort::ElementType real) {
  return {{
      {"q", real, ort::kRequired, 4},
      {"k", real, ort::kRequired, 4},
      {"v", real, ort::kRequired, 4},
      {"policy", ort::kInt64, ort::kRequired, 1},
      {"pattern", ort::kUint8, ort::kRequired, 3},
  }};
}

// One call. Check fills in everything but the tensors.
struct Call {
  Tensor in[kInputCount];
  int64_t n_heads, n_kv_heads, q_len, head_dim, n_slots, n_blocks;
  int64_t mode, n_prompt_kept, n_others_kept, n_prompt, block_size;  // of the policy

  // The first problem in words, or "". `pattern` is not read.
  std::string Check();
};

// Memory of the outputs: out, the new pattern, stats.
ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, const Call& call, void* (&made)[3]);

}  // namespace dlm_edge::pattern_inputs
