// PatternAttention as an operator: reads and checks tensors, then runs pattern_plan.h.
#include <cmath>

#include "operator.h"
#include "pattern_plan.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "PatternAttention";

enum InputIndex { kQ, kK, kV, kPolicy, kPattern, kInputCount };

constexpr Input kInputs[kInputCount] = {
    {"q", ort::kFloat, ort::kRequired, 4},      {"k", ort::kFloat, ort::kRequired, 4},
    {"v", ort::kFloat, ort::kRequired, 4},      {"policy", ort::kInt64, ort::kRequired, 1},
    {"pattern", ort::kUint8, ort::kRequired, 3},
};
constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kUint8, ort::kFloat};

struct PatternKernel {
  ort::Api api;
  float scale;
};

std::string CheckShapes(const Tensor (&in)[kInputCount]) {
  std::string problem = CheckQuery(in[kQ]);
  if (problem.empty()) problem = CheckHeads(in[kQ].dims[1], in[kK].dims[1], "k");
  for (int i : {kK, kV})
    if (problem.empty())
      problem = CheckShape(in[i], kInputs[i].name, "[1, n_kv_heads, q_len, head_dim]",
                           {1, in[kK].dims[1], in[kQ].dims[2], in[kQ].dims[3]});
  if (problem.empty()) problem = CheckShape(in[kPolicy], "policy", "", {kPolicyNumbers});
  const int64_t n_slots = in[kPattern].dims[2];
  if (problem.empty())
    problem = CheckShape(in[kPattern], "pattern", "[n_heads, n_slots, n_slots]", {in[kQ].dims[1], n_slots, n_slots});
  return problem;
}

PatternArguments ArgumentsOf(const Tensor (&in)[kInputCount]) {
  const int64_t* policy = in[kPolicy].as<int64_t>();
  PatternArguments a{};
  a.n_heads = in[kQ].dims[1];
  a.n_kv_heads = in[kK].dims[1];
  a.q_len = in[kQ].dims[2];
  a.head_dim = in[kQ].dims[3];
  a.n_slots = in[kPattern].dims[2];
  a.mode = policy[0];
  a.n_prompt_kept = policy[1];
  a.n_others_kept = policy[2];
  a.n_prompt = policy[3];
  a.block_size = policy[8];
  a.q = in[kQ].as<float>();
  a.k = in[kK].as<float>();
  a.v = in[kV].as<float>();
  a.pattern = in[kPattern].as<uint8_t>();
  return a;
}

std::string CheckNumbers(const PatternArguments& a) {
  if (a.mode != kPatternDense && a.mode != kPatternReuse && a.mode != kPatternKeep)
    return "policy has mode " + std::to_string(a.mode) + ", expected 0 (dense), 3 (reuse) or 4 (keep)";
  if (a.n_blocks() > a.n_slots)
    return "pattern has " + std::to_string(a.n_slots) + " slots, expected at least " + std::to_string(a.n_blocks()) +
           " for " + std::to_string(a.q_len) + " positions in blocks of " + std::to_string(a.block_size);
  return "";
}

ort::Status* RunPattern(ort::Api api, ort::KernelContext* context, PatternArguments a) {
  void* outputs[3] = {};
  DLM_EDGE_TRY(MakeOutput(api, context, 0, {1, a.q_len, a.n_heads * a.head_dim}, &outputs[0]));
  DLM_EDGE_TRY(MakeOutput(api, context, 1, {a.n_heads, a.n_slots, a.n_slots}, &outputs[1]));
  DLM_EDGE_TRY(MakeOutput(api, context, 2, {4}, &outputs[2]));
  a.out = static_cast<float*>(outputs[0]);
  a.new_pattern = static_cast<uint8_t*>(outputs[1]);
  a.stats = static_cast<float*>(outputs[2]);

  static thread_local PatternPlan plan;
  plan.Build(a);
  for (int phase = 0; phase < PatternPlan::kPhases; ++phase) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  return nullptr;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  float scale = 0.0f;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_float::call(api, info, "scale", &scale)) {
    ort::ReleaseStatus::call(api, absent);
    scale = 0.0f;
  }
  *kernel = new (std::nothrow) PatternKernel{api, scale};
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const PatternKernel*>(opaque);
  const ort::Api api = kernel.api;
  try {
    Tensor in[kInputCount];
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, in, &problem));
    if (problem.empty()) problem = CheckShapes(in);
    if (problem.empty()) problem = CheckPolicy(in[kPolicy].as<int64_t>());
    if (!problem.empty()) return Refuse(api, kName, problem);
    PatternArguments a = ArgumentsOf(in);
    problem = CheckNumbers(a);
    if (!problem.empty()) return Refuse(api, kName, problem);
    a.scale = kernel.scale != 0.0f ? kernel.scale : 1.0f / std::sqrt(static_cast<float>(a.head_dim));
    return RunPattern(api, context, a);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
}

}  // namespace

Operator PatternAttentionOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 3, 3);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<PatternKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
