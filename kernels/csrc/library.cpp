// The operator library: what ONNX Runtime loads. Reads and checks tensors, calls attention.h, registers the table.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <new>
#include <string>

#include "attention.h"
#include "ort_abi.h"

#define DLM_EDGE_EXPORT extern "C" __attribute__((visibility("default")))
#define DLM_EDGE_TRY(call) \
  if (ort::Status* status = (call)) return status

namespace dlm_edge {
namespace {

constexpr int kOperatorVersion = 1;
constexpr const char* kDomain = "dlm_edge";

struct Input {
  const char* name;
  ort::ElementType type;
  ort::Characteristic characteristic;
  int rank;
};

// One operator. Inputs and outputs of later overloads are appended as kOptional: a model that does not have
// them simply passes fewer.
struct Operator {
  ort::CustomOp op;  // first, so that a CustomOp* is an Operator*
  const char* name;
  const Input* inputs;
  size_t n_inputs;
  const ort::ElementType* outputs;
  size_t n_outputs, n_required_outputs;
};

const Operator& Self(const ort::CustomOp* op) { return *reinterpret_cast<const Operator*>(op); }

struct Tensor {
  void* data = nullptr;  // null: an optional input that is not there
  int type = 0;
  size_t rank = 0;
  int64_t dims[4] = {};
};

std::string Shape(const Tensor& tensor) {
  std::string text = "[";
  for (size_t i = 0; i < tensor.rank && i < 4; ++i) text += (i ? ", " : "") + std::to_string(tensor.dims[i]);
  return text + (tensor.rank > 4 ? ", ...]" : "]");
}

ort::Status* Describe(ort::Api api, const ort::Value* value, Tensor* tensor) {
  *tensor = Tensor{};
  if (value == nullptr) return nullptr;
  DLM_EDGE_TRY(ort::GetTensorMutableData::call(api, const_cast<ort::Value*>(value), &tensor->data));
  ort::TensorInfo* info = nullptr;
  DLM_EDGE_TRY(ort::GetTensorTypeAndShape::call(api, value, &info));
  ort::Status* status = ort::GetTensorElementType::call(api, info, &tensor->type);
  if (status == nullptr) status = ort::GetDimensionsCount::call(api, info, &tensor->rank);
  if (status == nullptr && tensor->rank <= 4) status = ort::GetDimensions::call(api, info, tensor->dims, tensor->rank);
  ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
  return status;
}

// ---- PrefixBlockAttention ----

enum InputIndex { kQ, kK, kV, kKCache, kVCache, kStart, kCacheLen, kAttnBlock, kInputCount };

constexpr Input kAttentionInputs[kInputCount] = {
    {"q", ort::kFloat, ort::kRequired, 4},           {"k", ort::kFloat, ort::kRequired, 4},
    {"v", ort::kFloat, ort::kRequired, 4},           {"k_cache", ort::kFloat, ort::kRequired, 4},
    {"v_cache", ort::kFloat, ort::kRequired, 4},     {"start", ort::kInt64, ort::kRequired, 1},
    {"cache_len", ort::kInt64, ort::kRequired, 1},   {"attn_block", ort::kInt64, ort::kRequired, 1},
};
constexpr ort::ElementType kAttentionOutputs[] = {ort::kFloat};

struct AttentionKernel {
  ort::Api api;
  float scale;
};

std::string CheckTensor(const Tensor& tensor, const Input& expected) {
  if (tensor.type == expected.type && tensor.rank == static_cast<size_t>(expected.rank)) return "";
  return std::string(expected.name) + " must be a " + (expected.type == ort::kFloat ? "float" : "int64") +
         " tensor of rank " + std::to_string(expected.rank) + ", found element type " + std::to_string(tensor.type) +
         " and shape " + Shape(tensor);
}

std::string CheckShape(const Tensor& tensor, const char* name, const int64_t (&expected)[4], const char* layout) {
  bool same = true;
  for (int i = 0; i < 4; ++i) same = same && tensor.dims[i] == expected[i];
  if (same) return "";
  Tensor wanted;
  wanted.rank = 4;
  for (int i = 0; i < 4; ++i) wanted.dims[i] = expected[i];
  return std::string(name) + " has shape " + Shape(tensor) + ", expected " + layout + " = " + Shape(wanted);
}

std::string CheckShapes(const Tensor (&in)[kInputCount]) {
  const auto& q = in[kQ].dims;
  const auto& k = in[kK].dims;
  if (q[0] != 1 || q[1] < 1 || q[2] < 1 || q[3] < 1)
    return "q has shape " + Shape(in[kQ]) + ", expected [1, n_heads, q_len, head_dim], all at least 1";
  if (k[1] < 1 || q[1] % k[1] != 0)
    return "q has " + std::to_string(q[1]) + " heads and k has " + std::to_string(k[1]) +
           "; expected a multiple of the key/value heads";
  const int64_t window[4] = {1, k[1], q[2], q[3]};
  const int64_t cache[4] = {1, k[1], in[kKCache].dims[2], q[3]};
  const char* const window_layout = "[1, n_kv_heads, q_len, head_dim]";
  const char* const cache_layout = "[1, n_kv_heads, capacity, head_dim]";
  std::string problem = CheckShape(in[kK], "k", window, window_layout);
  if (problem.empty()) problem = CheckShape(in[kV], "v", window, window_layout);
  if (problem.empty()) problem = CheckShape(in[kKCache], "k_cache", cache, cache_layout);
  if (problem.empty()) problem = CheckShape(in[kVCache], "v_cache", cache, cache_layout);
  for (int i = kStart; i <= kAttnBlock && problem.empty(); ++i)
    if (in[i].dims[0] != 1)
      problem = std::string(kAttentionInputs[i].name) + " has shape " + Shape(in[i]) + ", expected [1]";
  return problem;
}

std::string CheckNumbers(const AttentionArguments& a) {
  constexpr int64_t kMaxStart = int64_t{1} << 62;  // keeps start + q_len from overflowing
  if (a.start < 0 || a.start > kMaxStart)
    return "start is " + std::to_string(a.start) + ", expected a position from 0 up to 2**62";
  if (a.cache_len < 0 || a.cache_len > a.capacity)
    return "cache_len is " + std::to_string(a.cache_len) + ", expected 0 to the capacity of the cache, " +
           std::to_string(a.capacity);
  if (a.attn_block < 1)
    return "attn_block is " + std::to_string(a.attn_block) + ", expected a block length of at least 1";
  return "";
}

ort::Status* CreateAttention(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  float scale = 0.0f;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_float::call(api, info, "scale", &scale)) {
    ort::ReleaseStatus::call(api, absent);
    scale = 0.0f;
  }
  *kernel = new (std::nothrow) AttentionKernel{api, scale};
  return *kernel ? nullptr : ort::CreateStatus::call(api, ort::kFail, "PrefixBlockAttention: out of memory");
}

ort::Status* ComputeAttention(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const AttentionKernel*>(opaque);
  const ort::Api api = kernel.api;
  auto refuse = [api](const std::string& problem) {
    return ort::CreateStatus::call(api, ort::kInvalidArgument, ("PrefixBlockAttention: " + problem).c_str());
  };

  Tensor in[kInputCount];
  for (size_t i = 0; i < kInputCount; ++i) {
    const ort::Value* value = nullptr;
    DLM_EDGE_TRY(ort::KernelContext_GetInput::call(api, context, i, &value));
    DLM_EDGE_TRY(Describe(api, value, &in[i]));
    const std::string problem = CheckTensor(in[i], kAttentionInputs[i]);
    if (!problem.empty()) return refuse(problem);
  }
  std::string problem = CheckShapes(in);
  if (!problem.empty()) return refuse(problem);

  AttentionArguments a{};
  a.n_heads = in[kQ].dims[1];
  a.n_kv_heads = in[kK].dims[1];
  a.q_len = in[kQ].dims[2];
  a.head_dim = in[kQ].dims[3];
  a.capacity = in[kKCache].dims[2];
  a.start = *static_cast<const int64_t*>(in[kStart].data);
  a.cache_len = *static_cast<const int64_t*>(in[kCacheLen].data);
  a.attn_block = *static_cast<const int64_t*>(in[kAttnBlock].data);
  a.scale = kernel.scale != 0.0f ? kernel.scale : 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  a.q = static_cast<const float*>(in[kQ].data);
  a.k = static_cast<const float*>(in[kK].data);
  a.v = static_cast<const float*>(in[kV].data);
  a.k_cache = static_cast<const float*>(in[kKCache].data);
  a.v_cache = static_cast<const float*>(in[kVCache].data);
  problem = CheckNumbers(a);
  if (!problem.empty()) return refuse(problem);

  const int64_t out_dims[3] = {1, a.q_len, a.n_heads * a.head_dim};
  ort::Value* out_value = nullptr;
  DLM_EDGE_TRY(ort::KernelContext_GetOutput::call(api, context, size_t{0}, &out_dims[0], size_t{3}, &out_value));
  Tensor out;
  DLM_EDGE_TRY(Describe(api, out_value, &out));
  a.out = static_cast<float*>(out.data);

  // The calling thread may itself run tasks, but never a second Compute before this one returns.
  static thread_local AttentionPlan plan;
  try {
    plan.Build(a);
  } catch (const std::bad_alloc&) {
    return ort::CreateStatus::call(api, ort::kFail, "PrefixBlockAttention: out of memory");
  }
  auto run_task = [](void* p, size_t i) { static_cast<const AttentionPlan*>(p)->RunTask(i); };
  auto run_merge = [](void* p, size_t i) { static_cast<const AttentionPlan*>(p)->RunMerge(i); };
  using Body = void (*)(void*, size_t);
  auto parallel_for = [&](Body body, size_t total) {
    return ort::KernelContext_ParallelFor::call(api, context, body, total, size_t{0}, static_cast<void*>(&plan));
  };
  DLM_EDGE_TRY(parallel_for(run_task, plan.n_tasks()));
  return plan.n_merges() ? parallel_for(run_merge, plan.n_merges()) : nullptr;
}

// ---- Registration ----

template <size_t kInputs, size_t kOutputs>
Operator MakeOperator(const char* name, const Input (&inputs)[kInputs], const ort::ElementType (&outputs)[kOutputs],
                      size_t n_required_outputs, decltype(ort::CustomOp::CreateKernelV2) create,
                      decltype(ort::CustomOp::KernelComputeV2) compute, void (*destroy)(void*)) {
  Operator made{{}, name, inputs, kInputs, outputs, kOutputs, n_required_outputs};
  ort::CustomOp& op = made.op;
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp* o) { return Self(o).name; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const ort::CustomOp* o) { return Self(o).n_inputs; };
  op.GetInputType = [](const ort::CustomOp* o, size_t i) -> int { return Self(o).inputs[i].type; };
  op.GetInputCharacteristic = [](const ort::CustomOp* o, size_t i) -> int { return Self(o).inputs[i].characteristic; };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
  op.GetOutputTypeCount = [](const ort::CustomOp* o) { return Self(o).n_outputs; };
  op.GetOutputType = [](const ort::CustomOp* o, size_t i) -> int { return Self(o).outputs[i]; };
  op.GetOutputCharacteristic = [](const ort::CustomOp* o, size_t i) -> int {
    return i < Self(o).n_required_outputs ? ort::kRequired : ort::kOptional;
  };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = destroy;
  op.GetStartVersion = [](const ort::CustomOp*) { return kOperatorVersion; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
  op.GetMayInplace = op.GetAliasMap = [](int** inputs_map, int** outputs_map) -> size_t {
    *inputs_map = *outputs_map = nullptr;
    return 0;
  };
  op.ReleaseMayInplace = op.ReleaseAliasMap = [](int*, int*) {};
  return made;
}

}  // namespace
}  // namespace dlm_edge

DLM_EDGE_EXPORT dlm_edge::ort::Status* RegisterCustomOps(dlm_edge::ort::SessionOptions* options,
                                                         const dlm_edge::ort::ApiBase* base) {
  using namespace dlm_edge;
  const ort::Api api = base->get_api(ort::kApiVersion);
  if (api == nullptr) {
    // A table of any age has CreateStatus; without a message the user would only read "not a registered op".
    char message[160];
    std::snprintf(message, sizeof(message), "dlm_edge operators need ONNX Runtime 1.18 or newer, this is %s",
                  base->get_version_string());
    const ort::Api oldest = base->get_api(1);
    return oldest ? ort::CreateStatus::call(oldest, ort::kFail, static_cast<const char*>(message)) : nullptr;
  }
  static const Operator operators[] = {
      MakeOperator("PrefixBlockAttention", kAttentionInputs, kAttentionOutputs, 1, CreateAttention, ComputeAttention,
                   [](void* kernel) { delete static_cast<AttentionKernel*>(kernel); }),
  };
  ort::OpDomain* domain = nullptr;  // owned by the session options
  DLM_EDGE_TRY(ort::CreateCustomOpDomain::call(api, kDomain, &domain));
  for (const Operator& each : operators) DLM_EDGE_TRY(ort::CustomOpDomain_Add::call(api, domain, &each.op));
  return ort::AddCustomOpDomain::call(api, options, domain);
}

DLM_EDGE_EXPORT int dlm_edge_operator_version() { return dlm_edge::kOperatorVersion; }

DLM_EDGE_EXPORT const char* dlm_edge_simd() { return dlm_edge::SimdName(); }

// For tests and measurements: 1 when the variant is in use from now on, 0 when this processor lacks it.
DLM_EDGE_EXPORT int dlm_edge_set_simd(const char* name) { return dlm_edge::SetSimd(name) ? 1 : 0; }
