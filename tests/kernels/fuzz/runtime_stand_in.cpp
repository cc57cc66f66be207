// See runtime_stand_in.h.
#include "runtime_stand_in.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fuzz {

std::vector<const ort::CustomOp*> registered;
const void* table[300];

namespace {

template <class Slot, class Function>
void Provide(Function function) {
  table[Slot::number] = reinterpret_cast<const void*>(function);
}

ort::Status* Failure(const char* text) { return reinterpret_cast<ort::Status*>(new FakeStatus{text}); }

}  // namespace

size_t SizeOf(int type) { return type == ort::kInt64 ? 8 : type == ort::kFloat ? 4 : type == ort::kFloat16 ? 2 : 1; }

void FillTable() {
  Provide<ort::CreateStatus>(+[](int, const char* text) { return Failure(text); });
  Provide<ort::CreateCustomOpDomain>(+[](const char*, ort::OpDomain**) -> ort::Status* { return nullptr; });
  Provide<ort::CustomOpDomain_Add>(+[](ort::OpDomain*, const ort::CustomOp* op) -> ort::Status* {
    registered.push_back(op);
    return nullptr;
  });
  Provide<ort::AddCustomOpDomain>(+[](ort::SessionOptions*, ort::OpDomain*) -> ort::Status* { return nullptr; });
  Provide<ort::ReleaseStatus>(+[](ort::Status* status) { delete As<FakeStatus>(status); });
  Provide<ort::GetTensorMutableData>(+[](ort::Value* v, void** data) -> ort::Status* {
    *data = As<FakeValue>(v)->data;
    return nullptr;
  });
  Provide<ort::GetTensorTypeAndShape>(+[](const ort::Value* v, ort::TensorInfo** info) -> ort::Status* {
    *info = As<ort::TensorInfo>(v);
    return nullptr;
  });
  Provide<ort::ReleaseTensorTypeAndShapeInfo>(+[](ort::TensorInfo*) {});
  Provide<ort::GetTensorElementType>(+[](const ort::TensorInfo* v, int* type) -> ort::Status* {
    *type = As<FakeValue>(v)->type;
    return nullptr;
  });
  Provide<ort::GetDimensionsCount>(+[](const ort::TensorInfo* v, size_t* n) -> ort::Status* {
    *n = As<FakeValue>(v)->dims.size();
    return nullptr;
  });
  Provide<ort::GetDimensions>(+[](const ort::TensorInfo* v, int64_t* dims, size_t n) -> ort::Status* {
    std::copy_n(As<FakeValue>(v)->dims.begin(), n, dims);
    return nullptr;
  });
  Provide<ort::KernelContext_GetInputCount>(+[](const ort::KernelContext* c, size_t* n) -> ort::Status* {
    *n = As<FakeContext>(c)->inputs.size();
    return nullptr;
  });
  Provide<ort::KernelContext_GetInput>(
      +[](const ort::KernelContext* c, size_t i, const ort::Value** v) -> ort::Status* {
        *v = As<ort::Value>(As<FakeContext>(c)->inputs.at(i));
        return nullptr;
      });
  Provide<ort::KernelContext_GetOutput>(
      +[](ort::KernelContext* c, size_t i, const int64_t* dims, size_t rank, ort::Value** v) -> ort::Status* {
        auto* context = As<FakeContext>(c);
        auto* made = new FakeValue{ort::kFloat, {dims, dims + rank}, nullptr};
        const int source = context->in_place.at(i);
        if (i < 2 && context->outputs.size() == 5) made->type = ort::kUint8;
        if (i == 1 && context->outputs.size() == 3) made->type = ort::kUint8;
        if (!context->types.empty()) made->type = context->types.at(i);
        made->is_owner = source < 0 || context->inputs.at(source)->bytes() != made->bytes();
        made->data = made->is_owner ? As<char>(std::malloc(made->bytes())) : context->inputs[source]->data;
        if (made->is_owner) std::memset(made->data, 0xff, made->bytes());  // NaN
        context->outputs.at(i) = made;
        *v = As<ort::Value>(made);
        return nullptr;
      });
  Provide<ort::KernelContext_ParallelFor>(
      +[](const ort::KernelContext*, void (*run)(void*, size_t), size_t total, size_t, void* user) -> ort::Status* {
        for (size_t i = total; i-- > 0;) run(user, i);
        return nullptr;
      });
  Provide<ort::KernelInfoGetAttribute_float>(
      +[](const ort::KernelInfo* info, const char* name, float* out) -> ort::Status* {
        auto& all = As<FakeInfo>(info)->floats;
        return all.count(name) ? (*out = all[name], nullptr) : Failure("absent");
      });
  Provide<ort::KernelInfoGetAttribute_int64>(
      +[](const ort::KernelInfo* info, const char* name, int64_t* out) -> ort::Status* {
        auto& all = As<FakeInfo>(info)->ints;
        return all.count(name) ? (*out = all[name], nullptr) : Failure("absent");
      });
  Provide<ort::KernelInfoGetAttribute_string>(
      +[](const ort::KernelInfo* info, const char* name, char* out, size_t* size) -> ort::Status* {
        auto& all = As<FakeInfo>(info)->strings;
        if (!all.count(name) || *size < all[name].size() + 1) return Failure("absent or too long");
        std::memcpy(out, all[name].c_str(), all[name].size() + 1);
        return nullptr;
      });
}

}  // namespace fuzz
