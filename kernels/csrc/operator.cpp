// See operator.h.
#include "operator.h"

#include <algorithm>
#include <cmath>

namespace dlm_edge {
namespace {

const Operator& Self(const ort::CustomOp* op) { return *reinterpret_cast<const Operator*>(op); }

const char* TypeName(int type) {
  switch (type) {
    case ort::kFloat: return "float";
    case ort::kUint8: return "uint8";
    case ort::kInt8: return "int8";
    case ort::kInt64: return "int64";
    case ort::kFloat16: return "float16";
    default: return "float, float16 or uint8";
  }
}

std::string CheckTensor(const Tensor& tensor, const Input& expected) {
  const bool is_cache_type = tensor.type == ort::kFloat || tensor.type == ort::kFloat16 || tensor.type == ort::kUint8;
  const bool has_type = expected.type == ort::kAnyType ? is_cache_type : tensor.type == expected.type;
  const bool has_rank = expected.rank == kAnyRank || tensor.rank == static_cast<size_t>(expected.rank);
  if (has_type && has_rank) return "";
  const std::string rank = expected.rank == kAnyRank ? "" : " of rank " + std::to_string(expected.rank);
  return std::string(expected.name) + " must be a " + TypeName(expected.type) + " tensor" + rank + ", found element type " + std::to_string(tensor.type) + " and shape " +
         Shape(tensor);
}

}  // namespace

std::string Shape(const Tensor& tensor) {
  std::string text = "[";
  for (size_t i = 0; i < tensor.rank && i < 4; ++i) text += (i ? ", " : "") + std::to_string(tensor.dims[i]);
  return text + (tensor.rank > 4 ? ", ...]" : "]");
}

ort::Status* Describe(ort::Api api, const ort::Value* value, Tensor* tensor) {
  *tensor = Tensor{};
  if (value == nullptr) return nullptr;
  tensor->is_given = true;
  DLM_EDGE_TRY(ort::GetTensorMutableData::call(api, const_cast<ort::Value*>(value), &tensor->data));
  ort::TensorInfo* info = nullptr;
  DLM_EDGE_TRY(ort::GetTensorTypeAndShape::call(api, value, &info));
  ort::Status* status = ort::GetTensorElementType::call(api, info, &tensor->type);
  if (status == nullptr) status = ort::GetDimensionsCount::call(api, info, &tensor->rank);
  if (status == nullptr && tensor->rank <= 4) status = ort::GetDimensions::call(api, info, tensor->dims, tensor->rank);
  ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
  return status;
}

ort::Status* ReadInputs(ort::Api api, const ort::KernelContext* context, const Input* table, size_t n_inputs,
                        Tensor* inputs, std::string* problem) {
  size_t n_given = 0;
  DLM_EDGE_TRY(ort::KernelContext_GetInputCount::call(api, context, &n_given));
  for (size_t i = 0; i < n_inputs && problem->empty(); ++i) {
    const ort::Value* value = nullptr;
    if (i < n_given) DLM_EDGE_TRY(ort::KernelContext_GetInput::call(api, context, i, &value));
    DLM_EDGE_TRY(Describe(api, value, &inputs[i]));
    if (inputs[i].is_given || table[i].characteristic == ort::kRequired) *problem = CheckTensor(inputs[i], table[i]);
  }
  return nullptr;
}

ort::Status* MakeOutput(ort::Api api, ort::KernelContext* context, size_t index, std::initializer_list<int64_t> dims,
                        void** data) {
  ort::Value* value = nullptr;
  DLM_EDGE_TRY(ort::KernelContext_GetOutput::call(api, context, index, dims.begin(), dims.size(), &value));
  if (value == nullptr) return Refuse(api, "dlm_edge", "output " + std::to_string(index) + " of the node is not there");
  return ort::GetTensorMutableData::call(api, value, data);
}

std::string CheckShape(const Tensor& tensor, const char* name, const char* layout,
                       std::initializer_list<int64_t> dims) {
  if (tensor.rank == dims.size() && std::equal(dims.begin(), dims.end(), tensor.dims)) return "";
  Tensor wanted;
  wanted.rank = dims.size();
  std::copy(dims.begin(), dims.end(), wanted.dims);
  const std::string found = std::string(name) + " has shape " + Shape(tensor) + ", expected ";
  return found + (layout[0] ? std::string(layout) + " = " : "") + Shape(wanted);
}

std::string CheckQuery(const Tensor& q) {
  bool is_right = true;
  for (const int64_t dim : q.dims) is_right = is_right && dim >= 1 && dim <= INT32_MAX;
  if (is_right) return "";
  return "q has shape " + Shape(q) + ", expected [copies, n_heads, q_len, head_dim], all at least 1";
}

std::string CheckOneCopy(const Tensor& q) {
  if (q.dims[0] == 1) return "";
  return "q has shape " + Shape(q) + ", expected [1, n_heads, q_len, head_dim]: one copy of the window";
}

std::string CheckHeads(int64_t n_heads, int64_t n_kv_heads, const char* owner) {
  if (n_kv_heads >= 1 && n_heads % n_kv_heads == 0) return "";
  return "q has " + std::to_string(n_heads) + " heads and " + owner + " has " + std::to_string(n_kv_heads) +
         "; expected a multiple of the key/value heads";
}

std::string CheckStart(int64_t start) {
  if (start >= 0 && start <= kMaxStart) return "";
  return "start is " + std::to_string(start) + ", expected a position from 0 up to 2**62";
}

std::string CheckCapacity(int64_t cache_len, int64_t capacity) {
  if (cache_len >= 0 && cache_len <= capacity) return "";
  return "cache_len is " + std::to_string(cache_len) + ", expected 0 to the capacity of the cache, " +
         std::to_string(capacity);
}

std::string CheckPolicy(const int64_t* policy) {
  static constexpr const char* kNames[kPolicyNumbers] = {"mode",     "n_pages",      "n_active", "sink",     "recent",
                                                         "per_head", "since_stored", "one_list", "page_size"};
  static constexpr int64_t kLast[kPolicyNumbers] = {5, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, 1, 1, 1, INT64_MAX};
  for (int i = 0; i < kPolicyNumbers; ++i) {
    const int64_t first = i == kPolicyNumbers - 1 ? 1 : 0;
    if (policy[i] >= first && policy[i] <= kLast[i]) continue;
    const std::string limit =
        kLast[i] == INT64_MAX ? "at least " + std::to_string(first) : "0 to " + std::to_string(kLast[i]);
    return std::string("policy has ") + kNames[i] + " " + std::to_string(policy[i]) + ", expected " + limit;
  }
  return "";
}

float ScaledKernel::ScaleOf(int64_t head_dim) const {
  return scale != 0.0f ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
}

ort::Status* MakeScaledKernel(ort::Api api, const ort::KernelInfo* info, const char* name, void** kernel) {
  float scale = 0.0f;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_float::call(api, info, "scale", &scale)) {
    ort::ReleaseStatus::call(api, absent);
    scale = 0.0f;
  }
  *kernel = new (std::nothrow) ScaledKernel{api, scale};
  return *kernel ? nullptr : OutOfMemory(api, name);
}

Operator MakeOperator(const char* name, const Input* inputs, size_t n_inputs, const ort::ElementType* outputs,
                      size_t n_outputs, size_t n_required_outputs) {
  Operator made{{}, name, inputs, n_inputs, outputs, n_outputs, n_required_outputs};
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
  op.GetStartVersion = [](const ort::CustomOp*) { return kOperatorVersion; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
  op.GetMayInplace = op.GetAliasMap = [](int** inputs_map, int** outputs_map) -> size_t {
    *inputs_map = *outputs_map = nullptr;
    return 0;
  };
  op.ReleaseMayInplace = op.ReleaseAliasMap = [](int*, int*) {};
  return made;
}

}  // namespace dlm_edge
