// PrefixBlockAttention as an operator: reads and checks tensors, then runs attention.h (overload "dense") or
// sparse_attention.h (overloads "sparse", "sparse_fp16", "int8", "int4"). The overloads are told apart by their inputs.
#include <cmath>

#include "attention.h"
#include "operator.h"
#include "sparse_attention.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "PrefixBlockAttention";

enum InputIndex {
  kQ,
  kK,
  kV,
  kKCache,
  kVCache,
  kStart,
  kCacheLen,
  kAttnBlock,
  kActive,
  kPages,
  kPolicy,
  kPrefixOut,
  kPrefixLse,
  kMasses,
  kKScale,
  kKLow,
  kKTail,
  kVScale,
  kVLow,
  kInputCount
};

constexpr Input kInputs[kInputCount] = {
    {"q", ort::kFloat, ort::kRequired, 4},          {"k", ort::kFloat, ort::kRequired, 4},
    {"v", ort::kFloat, ort::kRequired, 4},          {"k_cache", ort::kAnyType, ort::kRequired, 4},
    {"v_cache", ort::kAnyType, ort::kRequired, 4},  {"start", ort::kInt64, ort::kRequired, 1},
    {"cache_len", ort::kInt64, ort::kRequired, 1},  {"attn_block", ort::kInt64, ort::kRequired, 1},
    {"active", ort::kUint8, ort::kOptional, 2},     {"pages", ort::kUint8, ort::kOptional, 2},
    {"policy", ort::kInt64, ort::kOptional, 1},     {"prefix_out", ort::kFloat, ort::kOptional, 4},
    {"prefix_lse", ort::kFloat, ort::kOptional, 3}, {"masses", ort::kFloat, ort::kOptional, 3},
    {"k_scale", ort::kFloat16, ort::kOptional, 4},  {"k_low", ort::kFloat16, ort::kOptional, 4},
    {"k_tail", ort::kFloat, ort::kOptional, 4},     {"v_scale", ort::kFloat16, ort::kOptional, 4},
    {"v_low", ort::kFloat16, ort::kOptional, 4},
};
constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};

struct AttentionKernel {
  ort::Api api;
  float scale;
};

// One call: the inputs, and what their shapes say.
struct Call {
  Tensor in[kInputCount];
  int64_t n_heads, n_kv_heads, q_len, head_dim, capacity;
  CacheType cache_type;

  bool is_sparse() const { return in[kActive].is_given; }
  bool has_codes() const { return cache_type == kByteCache || cache_type == kNibbleCache; }
  int64_t number(InputIndex i) const { return *in[i].as<int64_t>(); }
};

std::string CheckOverload(const Call& call) {
  const bool is_sparse = call.in[kActive].is_given, has_codes = call.in[kKCache].type == ort::kUint8;
  for (int i = kActive; i < kInputCount; ++i) {
    const bool is_wanted = i <= kMasses ? is_sparse : is_sparse && has_codes;
    if (call.in[i].is_given == is_wanted) continue;
    const char* const with = i <= kMasses ? "active" : "a cache of codes";
    return std::string(kInputs[i].name) + (is_wanted ? " is missing beside " : " is given without ") + with;
  }
  if (!is_sparse && call.in[kKCache].type != ort::kFloat)
    return "k_cache must be a float tensor of rank 4 where active is not given, found element type " +
           std::to_string(call.in[kKCache].type) + " and shape " + Shape(call.in[kKCache]);
  if (call.in[kVCache].type != call.in[kKCache].type)
    return "v_cache has element type " + std::to_string(call.in[kVCache].type) + ", expected that of k_cache, " +
           std::to_string(call.in[kKCache].type);
  return "";
}

std::string CheckWindowAndCache(Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kK].dims[1], "k");
  if (!problem.empty()) return problem;
  call->n_heads = in[kQ].dims[1];
  call->n_kv_heads = in[kK].dims[1];
  call->q_len = in[kQ].dims[2];
  call->head_dim = in[kQ].dims[3];
  call->capacity = in[kKCache].dims[2];
  int64_t width = call->head_dim;
  switch (in[kKCache].type) {
    case ort::kFloat16: call->cache_type = kHalfCache; break;
    case ort::kUint8: call->cache_type = kByteCache; break;
    default: call->cache_type = kFloatCache;
  }
  if (call->cache_type == kByteCache && call->head_dim % 2 == 0 && in[kKCache].dims[3] == call->head_dim / 2) {
    call->cache_type = kNibbleCache;
    width = call->head_dim / 2;
  }
  for (int i : {kK, kV})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_kv_heads, q_len, head_dim]",
                           {1, call->n_kv_heads, call->q_len, call->head_dim});
  const char* const layout = call->cache_type == kNibbleCache ? "[1, n_kv_heads, capacity, head_dim / 2]"
                                                              : "[1, n_kv_heads, capacity, head_dim]";
  for (int i : {kKCache, kVCache})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, layout, {1, call->n_kv_heads, call->capacity, width});
  for (int i : {kStart, kCacheLen, kAttnBlock})
    if (problem.empty()) problem = CheckShape(in[i], kInputs[i].name, "", {1});
  return problem;
}

std::string CheckNumbers(const Call& call) {
  std::string problem = CheckStart(call.number(kStart));
  if (problem.empty()) problem = CheckCapacity(call.number(kCacheLen), call.capacity);
  if (problem.empty() && call.number(kAttnBlock) < 1)
    problem = "attn_block is " + std::to_string(call.number(kAttnBlock)) + ", expected a block length of at least 1";
  return problem;
}

std::string CheckState(const Call& call) {
  const int64_t n_slots = call.in[kPages].dims[1], n_rows = call.in[kPrefixOut].dims[2];
  std::string problem = CheckShape(call.in[kActive], "active", "[n_kv_heads, q_len]", {call.n_kv_heads, call.q_len});
  if (problem.empty())
    problem = CheckShape(call.in[kPages], "pages", "[n_kv_heads, n_slots]", {call.n_kv_heads, n_slots});
  if (problem.empty()) problem = CheckShape(call.in[kPolicy], "policy", "", {kPolicyNumbers});
  if (problem.empty()) problem = CheckPolicy(call.in[kPolicy].as<int64_t>());
  if (problem.empty())
    problem = CheckShape(call.in[kPrefixOut], "prefix_out", "[1, n_heads, n_rows, head_dim]",
                         {1, call.n_heads, n_rows, call.head_dim});
  if (problem.empty())
    problem = CheckShape(call.in[kPrefixLse], "prefix_lse", "[1, n_heads, n_rows]", {1, call.n_heads, n_rows});
  if (problem.empty())
    problem = CheckShape(call.in[kMasses], "masses", "[1, n_kv_heads, n_slots]", {1, call.n_kv_heads, n_slots});
  if (!problem.empty()) return problem;
  if (call.capacity > 0 && (n_slots < 1 || call.capacity % n_slots != 0))
    return "the cache has " + std::to_string(call.capacity) + " positions and pages has " + std::to_string(n_slots) +
           " slots; expected whole pages";
  for (int64_t head = 0; head < call.n_kv_heads; ++head)
    for (int64_t i = n_rows; i < call.q_len; ++i)
      if (call.in[kActive].as<uint8_t>()[head * call.q_len + i] == 0)
        return "row " + std::to_string(i) + " of key/value head " + std::to_string(head) +
               " is not active and has no stored result: prefix_out has " + std::to_string(n_rows) + " rows";
  return "";
}

std::string CheckScales(const Call& call) {
  const int64_t k_group = call.in[kKTail].dims[2], n_groups = call.in[kVScale].dims[3];
  if (k_group < 1 || call.capacity % k_group != 0)
    return "k_tail has shape " + Shape(call.in[kKTail]) +
           ", expected [1, n_kv_heads, group, head_dim] with a group that "
           "divides the capacity of the cache, " +
           std::to_string(call.capacity);
  if (n_groups < 1 || call.head_dim % n_groups != 0)
    return "v_scale has shape " + Shape(call.in[kVScale]) +
           ", expected [1, n_kv_heads, capacity, groups] with groups "
           "that divide head_dim, " +
           std::to_string(call.head_dim);
  std::string problem = CheckShape(call.in[kKTail], "k_tail", "[1, n_kv_heads, group, head_dim]",
                                   {1, call.n_kv_heads, k_group, call.head_dim});
  for (int i : {kKScale, kKLow})
    if (problem.empty())
      problem = CheckShape(call.in[i], kInputs[i].name, "[1, n_kv_heads, capacity / group, head_dim]",
                           {1, call.n_kv_heads, call.capacity / k_group, call.head_dim});
  for (int i : {kVScale, kVLow})
    if (problem.empty())
      problem = CheckShape(call.in[i], kInputs[i].name, "[1, n_kv_heads, capacity, groups]",
                           {1, call.n_kv_heads, call.capacity, n_groups});
  return problem;
}

ort::Status* RunDense(ort::Api api, ort::KernelContext* context, const Call& call, float scale) {
  AttentionArguments a{};
  a.n_heads = call.n_heads;
  a.n_kv_heads = call.n_kv_heads;
  a.q_len = call.q_len;
  a.head_dim = call.head_dim;
  a.capacity = call.capacity;
  a.start = call.number(kStart);
  a.cache_len = call.number(kCacheLen);
  a.attn_block = call.number(kAttnBlock);
  a.scale = scale;
  a.q = call.in[kQ].as<float>();
  a.k = call.in[kK].as<float>();
  a.v = call.in[kV].as<float>();
  a.k_cache = call.in[kKCache].as<float>();
  a.v_cache = call.in[kVCache].as<float>();
  void* out = nullptr;
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {1, a.q_len, a.n_heads * a.head_dim}, &out));
  a.out = static_cast<float*>(out);

  // The calling thread may itself run tasks, but never a second Compute before this one returns.
  static thread_local AttentionPlan plan;
  plan.Build(a);
  for (int phase = 0; phase < AttentionPlan::kPhases; ++phase) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  return nullptr;
}

SparseArguments SparseArgumentsOf(const Call& call, float scale) {
  SparseArguments a{};
  a.n_heads = call.n_heads;
  a.n_kv_heads = call.n_kv_heads;
  a.q_len = call.q_len;
  a.head_dim = call.head_dim;
  a.capacity = call.capacity;
  a.n_slots = call.in[kPages].dims[1];
  a.n_rows = call.in[kPrefixOut].dims[2];
  a.start = call.number(kStart);
  a.cache_len = call.number(kCacheLen);
  a.attn_block = call.number(kAttnBlock);
  a.scale = scale;
  a.measure = call.number(kPolicy) == 4;  // DENSE_KEEP
  a.q = call.in[kQ].as<float>();
  a.k = call.in[kK].as<float>();
  a.v = call.in[kV].as<float>();
  a.cache_type = call.cache_type;
  a.k_cache = call.in[kKCache].data;
  a.v_cache = call.in[kVCache].data;
  if (call.has_codes()) {
    a.k_scale = call.in[kKScale].as<uint16_t>();
    a.k_low = call.in[kKLow].as<uint16_t>();
    a.v_scale = call.in[kVScale].as<uint16_t>();
    a.v_low = call.in[kVLow].as<uint16_t>();
    a.k_tail = call.in[kKTail].as<float>();
    a.k_group = call.in[kKTail].dims[2];
    a.v_group = call.head_dim / call.in[kVScale].dims[3];
  }
  a.active = call.in[kActive].as<uint8_t>();
  a.pages = call.in[kPages].as<uint8_t>();
  a.prefix_out = call.in[kPrefixOut].as<float>();
  a.prefix_lse = call.in[kPrefixLse].as<float>();
  a.masses = call.in[kMasses].as<float>();
  return a;
}

ort::Status* RunSparse(ort::Api api, ort::KernelContext* context, const Call& call, float scale) {
  SparseArguments a = SparseArgumentsOf(call, scale);
  void* outputs[4] = {};
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {1, a.q_len, a.n_heads * a.head_dim}, &outputs[0]));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {1, a.n_heads, a.n_rows, a.head_dim}, &outputs[1]));
  DLM_EDGE_TRY(MakeOutput(api, context, 2, {1, a.n_heads, a.n_rows}, &outputs[2]));
  DLM_EDGE_TRY(MakeOutput(api, context, 3, {1, a.n_kv_heads, a.n_slots}, &outputs[3]));
  a.out = static_cast<float*>(outputs[0]);
  a.new_prefix_out = static_cast<float*>(outputs[1]);
  a.new_prefix_lse = static_cast<float*>(outputs[2]);
  a.new_masses = static_cast<float*>(outputs[3]);

  static thread_local SparsePlan plan;
  plan.Build(a);
  for (int phase = 0; phase < SparsePlan::kPhases; ++phase) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  return nullptr;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  float scale = 0.0f;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_float::call(api, info, "scale", &scale)) {
    ort::ReleaseStatus::call(api, absent);
    scale = 0.0f;
  }
  *kernel = new (std::nothrow) AttentionKernel{api, scale};
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const AttentionKernel*>(opaque);
  const ort::Api api = kernel.api;
  try {
    Call call{};
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, call.in, &problem));
    if (problem.empty()) problem = CheckOverload(call);
    if (problem.empty()) problem = CheckWindowAndCache(&call);
    if (problem.empty()) problem = CheckNumbers(call);
    if (problem.empty() && call.is_sparse()) problem = CheckState(call);
    if (problem.empty() && call.has_codes()) problem = CheckScales(call);
    if (!problem.empty()) return Refuse(api, kName, problem);
    const float scale = kernel.scale != 0.0f ? kernel.scale : 1.0f / std::sqrt(static_cast<float>(call.head_dim));
    return call.is_sparse() ? RunSparse(api, context, call, scale) : RunDense(api, context, call, scale);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
}

}  // namespace

Operator AttentionOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 4, 1);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<AttentionKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
