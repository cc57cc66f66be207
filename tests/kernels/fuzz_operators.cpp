// Random and damaged calls of the operators, for a build with sanitizers: tools/sanitize_kernels.sh.
//
//   fuzz_operators CALLS [SEED]
//
// The operators are run through the table that they register, by a stand-in for ONNX Runtime that knows just the
// functions they use. Every tensor is an allocation of its exact size, so that the address sanitizer sees a read or
// write of one byte beyond it. Half of the calls are sound: they must succeed, and without NaN in the inputs the
// results must be finite. The others are damaged (a dimension, a number, an element type, a missing tensor, page tables
// and state of arbitrary bytes): they may be refused, with a message that names the operator, or succeed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/csrc/operator.h"
#include "../../kernels/csrc/simd.h"

using namespace dlm_edge;

extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions*, const ort::ApiBase*);

namespace {

std::mt19937_64 generator;
int64_t Random(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
bool Chance(double p) { return std::bernoulli_distribution(p)(generator); }
template <class T>
T Pick(std::initializer_list<T> values) {
  return values.begin()[Random(0, static_cast<int64_t>(values.size()) - 1)];
}

size_t SizeOf(int type) { return type == ort::kInt64 ? 8 : type == ort::kFloat ? 4 : type == ort::kFloat16 ? 2 : 1; }

struct FakeValue {
  int type;
  std::vector<int64_t> dims;
  char* data;
  bool is_owner = true;

  size_t count() const {
    size_t n = 1;
    for (const int64_t dim : dims) n *= static_cast<size_t>(dim);
    return n;
  }
  size_t bytes() const { return count() * SizeOf(type); }
};

struct FakeStatus {
  std::string message;
};
struct FakeContext {
  std::vector<FakeValue*> inputs, outputs;
  std::vector<int> in_place;  // per output: the input whose memory it takes, or -1
};
struct FakeInfo {
  std::map<std::string, float> floats;
  std::map<std::string, int64_t> ints;
  std::map<std::string, std::string> strings;
};

std::vector<const ort::CustomOp*> registered;
const void* table[300];

template <class Slot, class Function>
void Provide(Function function) {
  table[Slot::number] = reinterpret_cast<const void*>(function);
}

template <class T>
auto* As(const void* p) {
  return static_cast<T*>(const_cast<void*>(p));
}
ort::Status* Failure(const char* text) { return reinterpret_cast<ort::Status*>(new FakeStatus{text}); }

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

// How floats are filled: sound numbers, or any bits.
bool any_bits;

void Fill(FakeValue* value) {
  const size_t n = value->count();
  for (size_t i = 0; i < n; ++i) {
    const float number = std::normal_distribution<float>()(generator);
    if (any_bits || SizeOf(value->type) == 1) {
      for (size_t b = 0; b < SizeOf(value->type); ++b)
        value->data[i * SizeOf(value->type) + b] = static_cast<char>(generator());
    } else if (value->type == ort::kFloat) {
      std::memcpy(value->data + 4 * i, &number, 4);
    } else if (value->type == ort::kFloat16) {
      const uint16_t half = static_cast<uint16_t>(Random(0, 0x3c00) | (Chance(0.5) ? 0x8000 : 0));  // -1 to 1
      std::memcpy(value->data + 2 * i, &half, 2);
    }
  }
}

FakeValue* Make(int type, std::vector<int64_t> dims) {
  auto* value = new FakeValue{type, std::move(dims), nullptr};
  value->data = As<char>(std::malloc(value->bytes()));
  Fill(value);
  return value;
}

FakeValue* Ints(std::vector<int64_t> numbers) {
  auto* value = new FakeValue{ort::kInt64, {static_cast<int64_t>(numbers.size())}, nullptr};
  value->data = As<char>(std::malloc(value->bytes()));
  std::copy(numbers.begin(), numbers.end(), As<int64_t>(value->data));
  return value;
}

std::vector<int64_t> RandomPolicy(int64_t page_size) {
  auto count = [] { return Pick<int64_t>({0, 1, 2, 5, 17, 200, INT64_MAX}); };
  return {Random(0, 5), count(), count(), count(), count(), Random(0, 1), Random(0, 1), Random(0, 1), page_size};
}

struct Shapes {
  int64_t n_kv_heads = Random(1, 4), group = Random(1, 8), q_len = Pick<int64_t>({1, 2, 7, 16, 33, 64});
  int64_t head_dim = Pick<int64_t>({1, 2, 8, 16, 20, 40, 64, 80, 96, 128}),
          page_size = Pick<int64_t>({1, 3, 8, 16, 32, 128});
  int64_t n_slots = Random(0, 20), capacity = n_slots * page_size,
          cache_len = Chance(0.5) ? capacity : Random(0, capacity);
  int64_t start = Chance(0.7) ? cache_len : Random(0, capacity + 10), n_rows = Chance(0.5) ? q_len : Random(0, 40);
  int64_t n_heads = n_kv_heads * group;
};

FakeContext SparseCall() {
  const Shapes s;
  const int kind = static_cast<int>(Random(0, 3));  // float, half, bytes, nibbles
  const int64_t dim = kind == 3 ? s.head_dim * 2 : s.head_dim, width = kind == 3 ? dim / 2 : dim;
  const int type = kind == 0 ? ort::kFloat : kind == 1 ? ort::kFloat16 : ort::kUint8;
  FakeContext c;
  c.inputs = {Make(ort::kFloat, {1, s.n_heads, s.q_len, dim}),
              Make(ort::kFloat, {1, s.n_kv_heads, s.q_len, dim}),
              Make(ort::kFloat, {1, s.n_kv_heads, s.q_len, dim}),
              Make(type, {1, s.n_kv_heads, s.capacity, width}),
              Make(type, {1, s.n_kv_heads, s.capacity, width}),
              Ints({s.start}),
              Ints({s.cache_len}),
              Ints({Pick<int64_t>({1, 4, 16, 64, int64_t{1} << 40, INT64_MAX})})};
  c.outputs.resize(1);
  c.in_place = {-1};
  if (kind == 0 && Chance(0.2)) return c;  // the dense form
  auto* active = Make(ort::kUint8, {s.n_kv_heads, s.q_len});
  for (int64_t head = 0; head < s.n_kv_heads; ++head)
    for (int64_t i = 0; i < s.q_len; ++i) active->data[head * s.q_len + i] = i >= s.n_rows || Chance(0.4) ? 255 : 0;
  for (auto* each : {active, Make(ort::kUint8, {s.n_kv_heads, s.n_slots}), Ints(RandomPolicy(s.page_size)),
                     Make(ort::kFloat, {1, s.n_heads, s.n_rows, dim}), Make(ort::kFloat, {1, s.n_heads, s.n_rows}),
                     Make(ort::kFloat, {1, s.n_kv_heads, s.n_slots})})
    c.inputs.push_back(each);
  c.outputs.resize(4);
  const bool in_place = Chance(0.5);
  c.in_place = {-1, in_place ? 11 : -1, in_place ? 12 : -1, in_place ? 13 : -1};
  if (kind < 2) return c;
  int64_t k_group = Random(1, 64), v_groups = Random(1, dim);
  while (s.capacity % k_group != 0) --k_group;
  while (dim % v_groups != 0) --v_groups;
  const std::vector<int64_t> k_dims = {1, s.n_kv_heads, s.capacity / k_group, dim},
                             v_dims = {1, s.n_kv_heads, s.capacity, v_groups};
  for (auto* each :
       {Make(ort::kFloat16, k_dims), Make(ort::kFloat16, k_dims), Make(ort::kFloat, {1, s.n_kv_heads, k_group, dim}),
        Make(ort::kFloat16, v_dims), Make(ort::kFloat16, v_dims)})
    c.inputs.push_back(each);
  return c;
}

FakeContext SelectCall() {
  const Shapes s;
  FakeContext c;
  const std::vector<int64_t> bounds = {1, s.n_kv_heads, s.n_slots, s.head_dim},
                             state = {1, s.n_heads, s.n_rows, s.head_dim};
  const std::vector<int64_t> slots = {1, s.n_kv_heads, s.n_slots};
  auto* drift = Make(ort::kFloat, {1});
  const float limit = Pick<float>({0.0f, 1.5f, INFINITY, NAN});
  if (!any_bits) std::memcpy(drift->data, &limit, 4);
  c.inputs = {Make(ort::kFloat, {1, s.n_heads, s.q_len, s.head_dim}),
              Make(ort::kInt8, bounds),
              Make(ort::kInt8, bounds),
              Make(ort::kFloat, slots),
              Make(ort::kFloat, state),
              Make(ort::kFloat, state),
              Make(ort::kFloat, slots),
              Ints({s.start}),
              Ints({s.cache_len}),
              Ints(RandomPolicy(s.page_size)),
              drift};
  c.outputs.resize(5);
  const bool in_place = Chance(0.5);
  c.in_place = {-1, -1, in_place ? 4 : -1, in_place ? 5 : -1, -1};
  return c;
}

FakeContext PatternCall() {
  const Shapes s;
  const int64_t n_slots = (s.q_len - 1) / s.page_size + Random(1, 4);
  std::vector<int64_t> policy = RandomPolicy(s.page_size);
  policy[0] = Pick<int64_t>({0, 3, 4});
  const std::vector<int64_t> keys = {1, s.n_kv_heads, s.q_len, s.head_dim};
  FakeContext c;
  c.inputs = {Make(ort::kFloat, {1, s.n_heads, s.q_len, s.head_dim}), Make(ort::kFloat, keys), Make(ort::kFloat, keys),
              Ints(policy), Make(ort::kUint8, {s.n_heads, n_slots, n_slots})};
  c.outputs.resize(3);
  c.in_place = {-1, Chance(0.5) ? 4 : -1, -1};
  return c;
}

FakeContext RowsCall(const FakeInfo& info) {
  const int64_t bits = info.ints.at("bits"), width = 8 * Random(1, 40), group = Random(1, 40), n = Random(0, 6);
  const bool by_channel = info.strings.at("axis") == "channel";
  const int64_t capacity = n * group, cache_len = Random(0, capacity), n_tail = by_channel && Chance(0.8) ? group : 0;
  int64_t columns = Random(1, width);
  while (width % columns != 0) --columns;
  const std::vector<int64_t> scales =
      by_channel ? std::vector<int64_t>{n, width} : std::vector<int64_t>{capacity, columns};
  std::vector<int64_t> rows(cache_len > 0 ? Random(0, 200) : 0);
  for (int64_t& row : rows) row = Random(0, cache_len - 1);
  FakeContext c;
  c.inputs = {Make(ort::kUint8, {capacity, width * bits / 8}),
              Make(ort::kFloat16, scales),
              Make(ort::kFloat16, scales),
              Make(ort::kFloat, {n_tail, width}),
              Ints(rows),
              Ints({cache_len})};
  c.outputs.resize(1);
  c.in_place = {-1};
  return c;
}

void Damage(FakeContext* c) {
  FakeValue*& value = c->inputs[Random(0, static_cast<int64_t>(c->inputs.size()) - 1)];
  switch (value == nullptr ? 3 : Random(0, 4)) {
    case 0:  // a dimension
      if (!value->dims.empty()) {
        std::vector<int64_t> dims = value->dims;
        dims[Random(0, static_cast<int64_t>(dims.size()) - 1)] += Pick<int64_t>({-1, 1, 2, 5});
        for (int64_t& dim : dims) dim = std::max<int64_t>(dim, 0);
        const int type = value->type;
        std::free(value->data);
        delete value;
        value = Make(type, dims);
      }
      break;
    case 1:  // numbers
      for (auto* each : c->inputs)
        if (each != nullptr && each->type == ort::kInt64 && each->count() > 0 && Chance(0.5)) {
          const int64_t number = Pick<int64_t>({-1, 0, 1, 7, 1000, INT64_MIN, INT64_MAX, int64_t{1} << 62});
          std::memcpy(each->data + 8 * Random(0, static_cast<int64_t>(each->count()) - 1), &number, 8);
        }
      break;
    case 2: {  // an element type, a rank
      const auto dims = Chance(0.5) ? value->dims : std::vector<int64_t>(Random(0, 6), 2);
      std::free(value->data);
      delete value;
      value = Make(Pick<int>({ort::kFloat, ort::kUint8, ort::kInt8, ort::kInt64, ort::kFloat16}), dims);
      break;
    }
    case 3:  // a missing tensor
      if (Chance(0.5)) {
        if (value != nullptr) std::free(value->data);
        delete value;
        value = nullptr;
      } else {
        if (c->inputs.back() != nullptr) std::free(c->inputs.back()->data);
        delete c->inputs.back();
        c->inputs.pop_back();
      }
      break;
    default:  // bytes of a table or state
      if (value->bytes() > 0)
        for (size_t i = 0; i < value->bytes(); ++i) value->data[i] = static_cast<char>(generator());
  }
}

bool IsFinite(const FakeValue& value) {
  if (value.type != ort::kFloat) return true;
  for (size_t i = 0; i < value.count(); ++i) {
    float number;
    std::memcpy(&number, value.data + 4 * i, 4);
    if (std::isnan(number) || number == INFINITY) return false;  // -infinity is the log-sum-exp over nothing
  }
  return true;
}

// True when the call succeeded.
bool Call(const ort::CustomOp& op, bool is_damaged) {
  const std::string name = op.GetName(&op);
  FakeInfo info;
  if (Chance(0.3)) info.floats["scale"] = 0.3f;
  info.ints["bits"] = Pick<int64_t>({8, 4, 3, 2});
  info.strings["axis"] = Chance(0.5) ? "token" : "channel";
  FakeContext c = name == "SelectPages"        ? SelectCall()
                  : name == "DequantizeRows"   ? RowsCall(info)
                  : name == "PatternAttention" ? PatternCall()
                                               : SparseCall();
  for (int64_t n = is_damaged ? Random(1, 2) : 0; n > 0 && !c.inputs.empty(); --n) Damage(&c);
  if (c.inputs.empty()) return false;

  void* kernel = nullptr;
  if (op.CreateKernelV2(&op, table, As<ort::KernelInfo>(&info), &kernel) != nullptr) std::abort();
  auto* status = As<FakeStatus>(op.KernelComputeV2(kernel, As<ort::KernelContext>(&c)));
  op.KernelDestroy(kernel);
  const bool succeeded = status == nullptr;
  if (!succeeded && (!is_damaged || status->message.find(name + ": ") != 0)) {
    std::fprintf(stderr, "%s call of %s: %s\n", is_damaged ? "damaged" : "sound", name.c_str(),
                 status->message.c_str());
    std::abort();
  }
  for (FakeValue* output : c.outputs) {
    if (output == nullptr) continue;
    if (succeeded && !is_damaged && !any_bits && !IsFinite(*output)) {
      std::fprintf(stderr, "sound call of %s: a result is not finite\n", name.c_str());
      std::abort();
    }
    if (output->is_owner) std::free(output->data);
    delete output;
  }
  delete status;
  for (FakeValue* input : c.inputs) {
    if (input != nullptr) std::free(input->data);
    delete input;
  }
  return succeeded;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  const long n_calls = n_arguments > 1 ? std::atol(arguments[1]) : 2000;
  generator.seed(n_arguments > 2 ? std::atol(arguments[2]) : 0);
  FillTable();
  const ort::ApiBase base = {[](uint32_t) -> ort::Api { return table; }, []() { return "stand-in"; }};
  if (RegisterCustomOps(nullptr, &base) != nullptr) return 1;
  std::map<std::string, long> succeeded;
  for (long i = 0; i < n_calls; ++i) {
    for (const ort::CustomOp* op : registered) {
      SetSimd(Pick<const char*>({"avx512_vnni", "avx512", "avx2", "portable"}));  // where the processor has it
      any_bits = Chance(0.25);
      const bool is_damaged = Chance(0.5);
      const bool done = Call(*op, is_damaged);
      succeeded[std::string(op->GetName(op)) + (is_damaged ? ", damaged" : ", sound") +
                (done ? ": done" : ": refused")]++;
    }
  }
  for (const auto& [what, count] : succeeded) std::printf("%7ld  %s\n", count, what.c_str());
  return 0;
}
