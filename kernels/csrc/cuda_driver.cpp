// See cuda_driver.h.
#include "cuda_driver.h"

#include <dlfcn.h>

#include <mutex>

namespace dlm_edge::cuda {
namespace {

template <class Function>
void Find(void* library, const char* name, Function* function, std::string* problem) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr && problem->empty()) *problem = std::string("the CUDA driver has no ") + name;
}

std::string Load(Driver* driver) {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return "the CUDA driver's libcuda.so.1 cannot be loaded";
  std::string problem;
  Find(library, "cuCtxGetCurrent", &driver->CtxGetCurrent, &problem);
  Find(library, "cuCtxGetDevice", &driver->CtxGetDevice, &problem);
  Find(library, "cuDeviceGetAttribute", &driver->DeviceGetAttribute, &problem);
  Find(library, "cuModuleLoadData", &driver->ModuleLoadData, &problem);
  Find(library, "cuModuleGetFunction", &driver->ModuleGetFunction, &problem);
  Find(library, "cuFuncSetAttribute", &driver->FuncSetAttribute, &problem);
  Find(library, "cuLaunchKernel", &driver->LaunchKernel, &problem);
  Find(library, "cuMemAlloc_v2", &driver->MemAlloc, &problem);
  Find(library, "cuMemFree_v2", &driver->MemFree, &problem);
  Find(library, "cuMemcpyDtoDAsync_v2", &driver->MemcpyDtoDAsync, &problem);
  Find(library, "cuStreamSynchronize", &driver->StreamSynchronize, &problem);
  Find(library, "cuGetErrorString", &driver->GetErrorString, &problem);
  return problem;
}

}  // namespace

const Driver* LoadDriver(std::string* problem) {
  static Driver driver{};
  static std::string failure;
  static std::once_flag once;
  std::call_once(once, [] { failure = Load(&driver); });
  *problem = failure;
  return failure.empty() ? &driver : nullptr;
}

std::string Check(const Driver& driver, int result, const char* what) {
  if (result == 0) return "";
  const char* words = nullptr;
  driver.GetErrorString(result, &words);
  return std::string("CUDA failure in ") + what + ": " + (words ? words : "error " + std::to_string(result));
}

}  // namespace dlm_edge::cuda
