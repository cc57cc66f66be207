// See select_inputs.h.
#include "select_inputs.h"

namespace dlm_edge::select_inputs {

std::string Call::Check() {
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kLow].dims[1], "low");
  if (!problem.empty()) return problem;
  n_heads = in[kQ].dims[1];
  n_kv_heads = in[kLow].dims[1];
  q_len = in[kQ].dims[2];
  head_dim = in[kQ].dims[3];
  n_slots = in[kLow].dims[2];
  n_rows = in[kQLast].dims[2];
  policy = in[kPolicy].as<int64_t>();
  auto check = [&](int i, const char* layout, std::initializer_list<int64_t> dims) {
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, layout, dims);
  };
  for (int i : {kLow, kHigh}) check(i, "[1, n_kv_heads, n_slots, head_dim]", {1, n_kv_heads, n_slots, head_dim});
  for (int i : {kPageScale, kMasses}) check(i, "[1, n_kv_heads, n_slots]", {1, n_kv_heads, n_slots});
  for (int i : {kQLast, kQStored}) check(i, "[1, n_heads, n_rows, head_dim]", {1, n_heads, n_rows, head_dim});
  for (int i : {kStart, kCacheLen, kDrift}) check(i, "", {1});
  check(kPolicy, "", {kPolicyNumbers});
  if (problem.empty() && n_slots > INT32_MAX) problem = "low has " + std::to_string(n_slots) + " slots: too many";
  if (problem.empty()) problem = CheckPolicy(policy);
  if (problem.empty()) problem = CheckStart(number(kStart));
  if (!problem.empty()) return problem;
  const int64_t cache_len = number(kCacheLen), page_size = policy[kPageSize];
  n_valid = cache_len / page_size + (cache_len % page_size != 0);
  if (cache_len < 0 || n_valid > n_slots)
    return "cache_len is " + std::to_string(cache_len) + ", expected at most " + std::to_string(n_slots) +
           " pages of " + std::to_string(page_size) + " positions";
  return "";
}

ort::Status* MakeOutputs(ort::Api api, ort::KernelContext* context, const Call& call, void* (&made)[5]) {
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {call.n_kv_heads, call.q_len}, &made[0]));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {call.n_kv_heads, call.n_slots}, &made[1]));
  for (size_t i : {2, 3})
    DLM_EDGE_TRY(MakeOutput(api, context, i, {1, call.n_heads, call.n_rows, call.head_dim}, &made[i]));
  return MakeOutput(api, context, 4, {4}, &made[4]);
}

}  // namespace dlm_edge::select_inputs
