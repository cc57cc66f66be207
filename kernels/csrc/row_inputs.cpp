// See row_inputs.h.
#include "row_inputs.h"

#include <cstring>

namespace dlm_edge::row_inputs {

ort::Status* MakeRowKernel(ort::Api api, const ort::KernelInfo* info, const char* name, void** kernel) {
  int64_t bits = 0;
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "bits", &bits));
  if (bits != 8 && bits != 4 && bits != 3 && bits != 2)
    return Refuse(api, name, "bits is " + std::to_string(bits) + ", expected 8, 4, 3 or 2");
  char axis[16] = {};
  size_t size = sizeof(axis);
  if (ort::Status* unread = ort::KernelInfoGetAttribute_string::call(api, info, "axis", &axis[0], &size)) {
    ort::ReleaseStatus::call(api, unread);  // absent, or longer than any name that is known
    return Refuse(api, name, "axis must be 'token' or 'channel'");
  }
  const bool by_channel = std::strcmp(axis, "channel") == 0;
  if (!by_channel && std::strcmp(axis, "token") != 0)
    return Refuse(api, name, std::string("axis is '") + axis + "', expected 'token' or 'channel'");
  *kernel = new (std::nothrow) RowKernel{api, static_cast<int>(bits), by_channel};
  return *kernel ? nullptr : OutOfMemory(api, name);
}

std::string Call::Check(const RowKernel& kernel) {
  const int64_t row_bytes = in[kCodes].dims[1], bits = kernel.bits;
  const int64_t rows = in[kScale].dims[0], columns = in[kScale].dims[1];
  if (row_bytes < 1 || row_bytes > INT32_MAX / 8 || row_bytes % (bits == 3 ? 3 : 1) != 0)
    return "codes has shape " + Shape(in[kCodes]) + ", expected [capacity, width * " + std::to_string(bits) + " / 8]";
  capacity = in[kCodes].dims[0];
  width = row_bytes * 8 / bits;
  n_rows = in[kRows].dims[0];
  n_tail = in[kTail].dims[0];
  std::string problem = CheckShape(in[kCacheLen], "cache_len", "", {1});
  if (problem.empty()) problem = CheckShape(in[kLow], "low", "the shape of scale", {rows, columns});
  if (problem.empty()) problem = CheckShape(in[kTail], "tail", "[rows, width]", {n_tail, width});
  if (!problem.empty()) return problem;
  const bool fits = kernel.by_channel ? columns == width && (rows >= 1 ? capacity % rows == 0 : capacity == 0)
                                      : rows == capacity && columns >= 1 && width % columns == 0;
  if (!fits)
    return "scale has shape " + Shape(in[kScale]) + ", expected " +
           (kernel.by_channel ? "[capacity / group, width]" : "[capacity, width / group]") + " for capacity " +
           std::to_string(capacity) + " and width " + std::to_string(width);
  group = !kernel.by_channel ? width / columns : capacity > 0 ? capacity / rows : 1;
  if (n_tail != 0 && !(kernel.by_channel && (capacity == 0 || n_tail == group)))
    return "tail has shape " + Shape(in[kTail]) + ", expected no rows" +
           (kernel.by_channel ? " or those of one group" : "");
  cache_len = *in[kCacheLen].as<int64_t>();
  return CheckCapacity(cache_len, capacity);
}

}  // namespace dlm_edge::row_inputs
