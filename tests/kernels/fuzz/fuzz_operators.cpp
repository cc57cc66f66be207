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
#include <string>
#include <vector>

#include "../../../kernels/csrc/simd.h"
#include "random_tensors.h"
#include "runtime_stand_in.h"
#include "sound_calls.h"

extern "C" dlm_edge::ort::Status* RegisterCustomOps(dlm_edge::ort::SessionOptions*, const dlm_edge::ort::ApiBase*);

namespace fuzz {
namespace {

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
        for (size_t i = 0; i < value->bytes(); ++i) value->data[i] = static_cast<char>(RandomBits());
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
                  : name == "QuantizeRows"     ? QuantizeCall(info)
                  : name == "QLinear"          ? LinearCall(&info)
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
}  // namespace fuzz

using namespace fuzz;

int main(int n_arguments, char** arguments) {
  const long n_calls = n_arguments > 1 ? std::atol(arguments[1]) : 2000;
  Seed(n_arguments > 2 ? std::atol(arguments[2]) : 0);
  FillTable();
  const ort::ApiBase base = {[](uint32_t) -> ort::Api { return table; }, []() { return "stand-in"; }};
  if (RegisterCustomOps(nullptr, &base) != nullptr) return 1;
  std::map<std::string, long> succeeded;
  for (long i = 0; i < n_calls; ++i) {
    for (const ort::CustomOp* op : registered) {
      dlm_edge::SetSimd(Pick<const char*>({"avx512_vnni", "avx512", "avx2", "portable"}));  // where the processor has it
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
