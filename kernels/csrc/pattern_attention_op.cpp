// PatternAttention as an operator: reads and checks tensors, then runs pattern_plan.h.
#include "pattern_plan.h"

#include "pattern_inputs.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "PatternAttention";

using namespace pattern_inputs;

constexpr auto kInputs = Table(ort::kFloat);
constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kUint8, ort::kFloat};

PatternArguments ArgumentsOf(const Call& call, float scale) {
  const Tensor(&in)[kInputCount] = call.in;
  PatternArguments a{};
  a.n_heads = call.n_heads;
  a.n_kv_heads = call.n_kv_heads;
  a.q_len = call.q_len;
  a.head_dim = call.head_dim;
  a.n_slots = call.n_slots;
  a.mode = call.mode;
  a.n_prompt_kept = call.n_prompt_kept;
  a.n_others_kept = call.n_others_kept;
  a.n_prompt = call.n_prompt;
  a.block_size = call.block_size;
  a.scale = scale;
  a.q = in[kQ].as<float>();
  a.k = in[kK].as<float>();
  a.v = in[kV].as<float>();
  a.pattern = in[kPattern].as<uint8_t>();
  return a;
}

ort::Status* RunPattern(ort::Api api, ort::KernelContext* context, const Call& call, float scale) {
  void* outputs[3] = {};
  DLM_EDGE_TRY(MakeOutputs(api, context, call, outputs));
  PatternArguments a = ArgumentsOf(call, scale);
  a.out = static_cast<float*>(outputs[0]);
  a.new_pattern = static_cast<uint8_t*>(outputs[1]);
  a.stats = static_cast<float*>(outputs[2]);

  static thread_local PatternPlan plan;
  plan.Build(a);
  for (int phase = 0; phase < PatternPlan::kPhases; ++phase) DLM_EDGE_TRY(RunPhase(api, context, &plan, phase));
  return nullptr;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  return MakeScaledKernel(api, info, kName, kernel);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const ScaledKernel*>(opaque);
  const ort::Api api = kernel.api;
  return Answer<Call>(
      api, context, kName, kInputs.data(), kInputCount, [](Call& call) { return call.Check(); },
      [&](const Call& call) { return RunPattern(api, context, call, kernel.ScaleOf(call.head_dim)); });
}

}  // namespace

Operator PatternAttentionOperator() {
  Operator made = MakeOperator(kName, kInputs.data(), kInputCount, kOutputs, 3, 3);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<ScaledKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
