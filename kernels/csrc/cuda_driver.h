// The few functions of the CUDA driver that launching compiled kernels needs, found at run time: the library builds and
// loads on machines without CUDA. ONNX Runtime has made the device's primary context current on the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dlm_edge::cuda {

using DevicePointer = uint64_t;

// Every function returns 0 for success. Names and signatures are those of the driver's stable ABI.
struct Driver {
  int (*CtxGetCurrent)(void** context);
  int (*CtxGetDevice)(int* device);
  int (*DeviceGetAttribute)(int* value, int attribute, int device);
  int (*ModuleLoadData)(void** module, const void* image);
  int (*ModuleGetFunction)(void** function, void* module, const char* name);
  int (*FuncSetAttribute)(void* function, int attribute, int value);
  int (*LaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** arguments,
                      void** extra);
  int (*MemAlloc)(DevicePointer* memory, size_t n_bytes);
  int (*MemFree)(DevicePointer memory);
  int (*MemcpyDtoDAsync)(DevicePointer to, DevicePointer from, size_t n_bytes, void* stream);
  int (*StreamSynchronize)(void* stream);
  int (*GetErrorString)(int error, const char** text);
};

constexpr int kProcessorCount = 16, kMajor = 75, kMinor = 76;  // device attributes
constexpr int kMaxDynamicShared = 8;                            // function attribute

// The driver, loaded at the first call. Null: *problem says why.
const Driver* LoadDriver(std::string* problem);

// "" for success, else what was done and the driver's own words.
std::string Check(const Driver& driver, int result, const char* what);

}  // namespace dlm_edge::cuda
