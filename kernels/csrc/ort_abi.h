// The part of ONNX Runtime's C ABI that a CPU custom operator needs, written by hand.
//
// ONNX Runtime hands out a table of function pointers (OrtApi). The table only ever grows at its end, so a slot
// number is as stable as a symbol name. The numbers below are offsetof(OrtApi, name) / sizeof(void*) in
// onnxruntime_c_api.h of API 21 and API 23; tests/kernels/test_ort_abi.py compiles static_asserts against any
// copy of the official headers that is at hand. Every function returns Status* (null = success) unless noted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dlm_edge::ort {

// The oldest table that has every slot used here. Runtimes that are older answer GetApi with null.
constexpr uint32_t kApiVersion = 18;

struct Status;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct OpDomain;
struct ShapeInferContext;

using Api = const void* const*;

struct ApiBase {
  Api (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
// kAnyType as the type of an input: the runtime checks nothing, and all such inputs of a node have the same type.
enum ElementType : int { kAnyType = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

template <int kSlot, class Function>
struct Slot {
  static constexpr int number = kSlot;
  template <class... Arguments>
  static auto call(Api api, Arguments... arguments) {
    return reinterpret_cast<Function>(const_cast<void*>(api[kSlot]))(arguments...);
  }
};

using CreateStatus = Slot<0, Status* (*)(int code, const char* message)>;
using CreateCustomOpDomain = Slot<26, Status* (*)(const char* name, OpDomain**)>;
using CustomOpDomain_Add = Slot<27, Status* (*)(OpDomain*, const struct CustomOp*)>;
using AddCustomOpDomain = Slot<28, Status* (*)(SessionOptions*, OpDomain*)>;
using GetTensorMutableData = Slot<51, Status* (*)(Value*, void**)>;
using GetTensorElementType = Slot<60, Status* (*)(const TensorInfo*, int*)>;
using GetDimensionsCount = Slot<61, Status* (*)(const TensorInfo*, size_t*)>;
using GetDimensions = Slot<62, Status* (*)(const TensorInfo*, int64_t*, size_t rank)>;
using GetTensorTypeAndShape = Slot<65, Status* (*)(const Value*, TensorInfo**)>;
using KernelInfoGetAttribute_float = Slot<85, Status* (*)(const KernelInfo*, const char*, float*)>;
using KernelInfoGetAttribute_int64 = Slot<86, Status* (*)(const KernelInfo*, const char*, int64_t*)>;
// size: in, of the buffer, out, of the string with its final 0.
using KernelInfoGetAttribute_string = Slot<87, Status* (*)(const KernelInfo*, const char*, char*, size_t* size)>;
using KernelContext_GetInputCount = Slot<88, Status* (*)(const KernelContext*, size_t*)>;
using KernelContext_GetInput = Slot<90, Status* (*)(const KernelContext*, size_t, const Value**)>;
using KernelContext_GetOutput = Slot<91, Status* (*)(KernelContext*, size_t, const int64_t*, size_t rank, Value**)>;
using ReleaseStatus = Slot<93, void (*)(Status*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void (*)(TensorInfo*)>;
using KernelContext_GetGPUComputeStream = Slot<193, Status* (*)(const KernelContext*, void** stream)>;
// num_batch 0 lets the runtime spread the tasks over its intra-op threads.
using KernelContext_ParallelFor = Slot<274, Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t total,
                                                        size_t num_batch, void* user)>;

// struct OrtCustomOp, in declaration order. `version` decides how many of the members the runtime reads.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, Api, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);  // null = CPU
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, Api, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "OrtCustomOp of API 18 has 26 members");

}  // namespace dlm_edge::ort
