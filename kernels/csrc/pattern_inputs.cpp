// See pattern_inputs.h.
#include "pattern_inputs.h"

namespace dlm_edge::pattern_inputs {

std::string Call::Check() {
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckOneCopy(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kK].dims[1], "k");
  if (!problem.empty()) return problem;
  n_heads = in[kQ].dims[1];
  n_kv_heads = in[kK].dims[1];
  q_len = in[kQ].dims[2];
  head_dim = in[kQ].dims[3];
  n_slots = in[kPattern].dims[2];
  for (int i : {kK, kV})
    if (problem.empty())
      problem = CheckShape(in[i], i == kK ? "k" : "v", "[1, n_kv_heads, q_len, head_dim]",
                           {1, n_kv_heads, q_len, head_dim});
  if (problem.empty()) problem = CheckShape(in[kPolicy], "policy", "", {kPolicyNumbers});
  if (problem.empty())
    problem = CheckShape(in[kPattern], "pattern", "[n_heads, n_slots, n_slots]", {n_heads, n_slots, n_slots});
  const int64_t* const policy = in[kPolicy].as<int64_t>();
  if (problem.empty()) problem = CheckPolicy(policy);
  if (!problem.empty()) return problem;
  mode = policy[0];
  n_prompt_kept = policy[1];
  n_others_kept = policy[2];
  n_prompt = policy[3];
  block_size = policy[8];
  n_blocks = (q_len - 1) / block_size + 1;
  if (mode != kPatternDense && mode != kPatternReuse && mode != kPatternKeep)
    return "policy has mode " + std::to_string(mode) + ", expected 0 (dense), 3 (reuse) or 4 (keep)";
  if (n_blocks > n_slots)
    return "pattern has " + std::to_string(n_slots) + " slots, expected at least " + std::to_string(n_blocks) +
           " for " + std::to_string(q_len) + " positions in blocks of " + std::to_string(block_size);
  return "";
}

ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, const Call& call, void* (&made)[3]) {
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {1, call.q_len, call.n_heads * call.head_dim}, &made[0]));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {call.n_heads, call.n_slots, call.n_slots}, &made[1]));
  return MakeOutput(api, context, 2, {4}, &made[2]);
}

}  // namespace dlm_edge::pattern_inputs
