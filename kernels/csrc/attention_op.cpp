// PrefixBlockAttention as an operator: reads and checks tensors, then runs attention.h (overload "dense") or
// sparse_attention.h (overloads "sparse", "sparse_fp16", "int8", "int4", "int4x2"). The overloads are told apart by their inputs.
// Copies of the window are calls of the arithmetic one after the other, so that each has the bits it has alone.
#include "attention.h"
#include "attention_inputs.h"
#include "sparse_attention.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "PrefixBlockAttention";

using namespace attention_inputs;

constexpr auto kInputs = Table(ort::kFloat);
constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};

// Whether every row has something to give: a fresh result, or a stored one, which only a single copy can have.
std::string CheckActive(const Call& call) {
  const bool has_state = call.n_copies == 1;
  for (int64_t head = 0; head < call.n_kv_heads; ++head)
    for (int64_t i = has_state ? call.n_rows : 0; i < call.q_len; ++i)
      if (call.in[kActive].as<uint8_t>()[head * call.q_len + i] == 0)
        return "row " + std::to_string(i) + " of key/value head " + std::to_string(head) +
               " is not active and has no " +
               (has_state ? "stored result: prefix_out has " + std::to_string(call.n_rows) + " rows"
                          : "result of its own in " + std::to_string(call.n_copies) + " copies: all have to be active");
  return "";
}

// Values of one copy: of the queries and of the result, and of the keys.
int64_t OutSize(const Call& call) { return call.q_len * call.n_heads * call.head_dim; }
int64_t KeySize(const Call& call) { return call.q_len * call.n_kv_heads * call.head_dim; }

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
  a.k_cache = call.in[kKCache].as<float>();
  a.v_cache = call.in[kVCache].as<float>();
  void* out = nullptr;
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {call.n_copies, a.q_len, a.n_heads * a.head_dim}, &out));

  // The calling thread may itself run tasks, but never a second Compute before this one returns.
  static thread_local AttentionPlan plan;
  for (int64_t copy = 0; copy < call.n_copies; ++copy) {
    a.q = call.in[kQ].as<float>() + copy * OutSize(call);
    a.k = call.in[kK].as<float>() + copy * KeySize(call);
    a.v = call.in[kV].as<float>() + copy * KeySize(call);
    a.out = static_cast<float*>(out) + copy * OutSize(call);
    plan.Build(a);
    for (int phase = 0; phase < AttentionPlan::kPhases; ++phase) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  }
  return nullptr;
}

SparseArguments SparseArgumentsOf(const Call& call, float scale) {
  SparseArguments a{};
  a.n_heads = call.n_heads;
  a.n_kv_heads = call.n_kv_heads;
  a.q_len = call.q_len;
  a.head_dim = call.head_dim;
  a.capacity = call.capacity;
  a.n_slots = call.n_slots;
  a.n_rows = call.n_rows;
  a.start = call.number(kStart);
  a.cache_len = call.number(kCacheLen);
  a.attn_block = call.number(kAttnBlock);
  a.scale = scale;
  a.measure = call.measure();
  a.q = call.in[kQ].as<float>();
  a.k = call.in[kK].as<float>();
  a.v = call.in[kV].as<float>();
  a.cache_type = call.bits == 32 ? kFloatCache : call.bits == 16 ? kHalfCache : call.bits == 8 ? kByteCache : kNibbleCache;
  a.k_cache = call.in[kKCache].data;
  a.v_cache = call.in[kVCache].data;
  if (call.has_codes()) {
    a.k_scale = call.in[kKScale].as<uint16_t>();
    a.k_low = call.in[kKLow].as<uint16_t>();
    a.v_scale = call.in[kVScale].as<uint16_t>();
    a.v_low = call.in[kVLow].as<uint16_t>();
    a.k_tail = call.in[kKTail].as<float>();
    a.k_group = call.key_group;
    a.v_group = call.value_group;
    a.is_upper = call.has_planes() && call.number(kPlanes) == 1;
    a.k_lower = call.in[kKLower].data;
    a.v_lower = call.in[kVLower].data;
    if (call.has_planes() && !a.is_upper) a.cache_type = kPlanesCache;
  }
  a.active = call.in[kActive].as<uint8_t>();
  a.pages = call.in[kPages].as<uint8_t>();
  a.prefix_out = call.in[kPrefixOut].as<float>();
  a.prefix_lse = call.in[kPrefixLse].as<float>();
  a.masses = call.in[kMasses].as<float>();
  return a;
}

// From the arguments of one copy to those of the next one. The new state is that of the first copy alone.
void MoveToNextCopy(const Call& call, SparseArguments* a) {
  a->q += OutSize(call);
  a->k += KeySize(call);
  a->v += KeySize(call);
  a->out += OutSize(call);
  a->n_rows = 0;
  a->measure = false;
  a->masses = a->new_masses;
}

ort::Status* RunSparse(ort::Api api, ort::KernelContext* context, const Call& call, float scale) {
  SparseArguments a = SparseArgumentsOf(call, scale);
  void* outputs[4] = {};
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {call.n_copies, a.q_len, a.n_heads * a.head_dim}, &outputs[0]));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {1, a.n_heads, a.n_rows, a.head_dim}, &outputs[1]));
  DLM_EDGE_TRY(MakeOutput(api, context, 2, {1, a.n_heads, a.n_rows}, &outputs[2]));
  DLM_EDGE_TRY(MakeOutput(api, context, 3, {1, a.n_kv_heads, a.n_slots}, &outputs[3]));
  a.out = static_cast<float*>(outputs[0]);
  a.new_prefix_out = static_cast<float*>(outputs[1]);
  a.new_prefix_lse = static_cast<float*>(outputs[2]);
  a.new_masses = static_cast<float*>(outputs[3]);

  static thread_local SparsePlan plan;
  for (int64_t copy = 0; copy < call.n_copies; ++copy) {
    if (copy > 0) MoveToNextCopy(call, &a);
    plan.Build(a);
    for (int phase = 0; phase < SparsePlan::kPhases; ++phase) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  }
  return nullptr;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  return MakeScaledKernel(api, info, kName, kernel);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const ScaledKernel*>(opaque);
  const ort::Api api = kernel.api;
  const auto check = [](Call& call) {
    const std::string problem = call.Check(ort::kFloat);
    return problem.empty() && call.is_sparse() ? CheckActive(call) : problem;
  };
  return Answer<Call>(api, context, kName, kInputs.data(), kInputCount, check, [&](const Call& call) {
    const float scale = kernel.ScaleOf(call.head_dim);
    return call.is_sparse() ? RunSparse(api, context, call, scale) : RunDense(api, context, call, scale);
  });
}

}  // namespace

Operator AttentionOperator() {
  Operator made = MakeOperator(kName, kInputs.data(), kInputCount, kOutputs, 4, 1);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<ScaledKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
