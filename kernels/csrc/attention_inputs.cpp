// See attention_inputs.h.
#include "attention_inputs.h"

namespace dlm_edge::attention_inputs {
namespace {

constexpr auto kNames = Table(ort::kFloat);

std::string Problem(const Tensor (&in)[kInputCount], int i, const char* layout, std::initializer_list<int64_t> dims) {
  return CheckShape(in[i], kNames[i].name, layout, dims);
}

}  // namespace

std::string Call::Check(ort::ElementType real) {
  std::string problem = CheckOverload(real);
  if (problem.empty()) problem = CheckWindowAndCache();
  if (problem.empty()) problem = CheckNumbers();
  if (problem.empty() && is_sparse()) problem = CheckState();
  if (problem.empty() && has_codes()) problem = CheckScales();
  if (problem.empty() && has_planes()) problem = CheckPlanes();
  return problem;
}

std::string Call::CheckOverload(ort::ElementType real) const {
  const bool codes_given = in[kKCache].type == ort::kUint8;
  for (int i : {kKLower, kVLower}) {
    if (in[i].is_given != has_planes())
      return std::string(kNames[i].name) + (has_planes() ? " is missing beside planes" : " is given without planes");
  }
  if (has_planes() && !codes_given) return "planes is given without a cache of codes";
  for (int i = kActive; i <= kVLow; ++i) {
    const bool is_wanted = i <= kMasses ? is_sparse() : is_sparse() && codes_given;
    if (in[i].is_given == is_wanted) continue;
    const char* const with = i <= kMasses ? "active" : "a cache of codes";
    return std::string(kNames[i].name) + (is_wanted ? " is missing beside " : " is given without ") + with;
  }
  if (!is_sparse() && in[kKCache].type != real)
    return std::string("k_cache must be a ") + (real == ort::kFloat ? "float" : "float16") +
           " tensor of rank 4 where active is not given, found element type " + std::to_string(in[kKCache].type) +
           " and shape " + Shape(in[kKCache]);
  if (in[kVCache].type != in[kKCache].type)
    return "v_cache has element type " + std::to_string(in[kVCache].type) + ", expected that of k_cache, " +
           std::to_string(in[kKCache].type);
  return "";
}

std::string Call::CheckWindowAndCache() {
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kK].dims[1], "k");
  if (!problem.empty()) return problem;
  n_copies = in[kQ].dims[0];
  n_heads = in[kQ].dims[1];
  n_kv_heads = in[kK].dims[1];
  q_len = in[kQ].dims[2];
  head_dim = in[kQ].dims[3];
  capacity = in[kKCache].dims[2];
  bits = in[kKCache].type == ort::kFloat16 ? 16 : in[kKCache].type == ort::kUint8 ? 8 : 32;
  if (bits == 8 && head_dim % 2 == 0 && in[kKCache].dims[3] == head_dim / 2) bits = 4;
  for (int i : {kK, kV})
    if (problem.empty())
      problem = Problem(in, i, "[copies, n_kv_heads, q_len, head_dim]", {n_copies, n_kv_heads, q_len, head_dim});
  const int64_t width = bits == 4 ? head_dim / 2 : head_dim;
  const char* const layout =
      bits == 4 ? "[1, n_kv_heads, capacity, head_dim / 2]" : "[1, n_kv_heads, capacity, head_dim]";
  for (int i : {kKCache, kVCache})
    if (problem.empty()) problem = Problem(in, i, layout, {1, n_kv_heads, capacity, width});
  for (int i : {kStart, kCacheLen, kAttnBlock})
    if (problem.empty()) problem = Problem(in, i, "", {1});
  return problem;
}

std::string Call::CheckNumbers() const {
  std::string problem = CheckStart(number(kStart));
  if (problem.empty()) problem = CheckCapacity(number(kCacheLen), capacity);
  if (problem.empty() && number(kAttnBlock) < 1)
    problem = "attn_block is " + std::to_string(number(kAttnBlock)) + ", expected a block length of at least 1";
  return problem;
}

std::string Call::CheckState() {
  n_slots = in[kPages].dims[1];
  n_rows = in[kPrefixOut].dims[2];
  std::string problem;
  auto check = [&](int i, const char* layout, std::initializer_list<int64_t> dims) {
    if (problem.empty()) problem = Problem(in, i, layout, dims);
  };
  check(kActive, "[n_kv_heads, q_len]", {n_kv_heads, q_len});
  check(kPages, "[n_kv_heads, n_slots]", {n_kv_heads, n_slots});
  check(kPolicy, "", {kPolicyNumbers});
  if (problem.empty()) problem = CheckPolicy(in[kPolicy].as<int64_t>());
  check(kPrefixOut, "[1, n_heads, n_rows, head_dim]", {1, n_heads, n_rows, head_dim});
  check(kPrefixLse, "[1, n_heads, n_rows]", {1, n_heads, n_rows});
  check(kMasses, "[1, n_kv_heads, n_slots]", {1, n_kv_heads, n_slots});
  if (problem.empty() && capacity > 0 && (n_slots < 1 || capacity % n_slots != 0))
    problem = "the cache has " + std::to_string(capacity) + " positions and pages has " + std::to_string(n_slots) +
              " slots; expected whole pages";
  return problem;
}

std::string Call::CheckScales() {
  key_group = in[kKTail].dims[2];
  const int64_t n_groups = in[kVScale].dims[3];
  if (key_group < 1 || capacity % key_group != 0)
    return "k_tail has shape " + Shape(in[kKTail]) +
           ", expected [1, n_kv_heads, group, head_dim] with a group that divides the capacity of the cache, " +
           std::to_string(capacity);
  if (n_groups < 1 || head_dim % n_groups != 0)
    return "v_scale has shape " + Shape(in[kVScale]) +
           ", expected [1, n_kv_heads, capacity, groups] with groups that divide head_dim, " + std::to_string(head_dim);
  value_group = head_dim / n_groups;
  std::string problem =
      Problem(in, kKTail, "[1, n_kv_heads, group, head_dim]", {1, n_kv_heads, key_group, head_dim});
  for (int i : {kKScale, kKLow})
    if (problem.empty())
      problem = Problem(in, i, "[1, n_kv_heads, capacity / group, head_dim]",
                        {1, n_kv_heads, capacity / key_group, head_dim});
  for (int i : {kVScale, kVLow})
    if (problem.empty())
      problem = Problem(in, i, "[1, n_kv_heads, capacity, groups]", {1, n_kv_heads, capacity, n_groups});
  return problem;
}

std::string Call::CheckPlanes() const {
  if (bits != 4)
    return "k_cache has shape " + Shape(in[kKCache]) +
           ", expected [1, n_kv_heads, capacity, head_dim / 2] beside k_lower";
  std::string problem;
  for (int i : {kKLower, kVLower})
    if (problem.empty())
      problem = Problem(in, i, "[1, n_kv_heads, capacity, head_dim / 2]", {1, n_kv_heads, capacity, head_dim / 2});
  if (problem.empty()) problem = Problem(in, kPlanes, "", {1});
  if (problem.empty() && number(kPlanes) != 1 && number(kPlanes) != 2)
    problem = "planes is " + std::to_string(number(kPlanes)) + ", expected 1 or 2";
  return problem;
}

}  // namespace dlm_edge::attention_inputs
