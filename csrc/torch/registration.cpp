// Registers torch.ops.fastdecode.* when the library is loaded, through libtorch's stable interface:
// one binary for libtorch 2.10 and later (TORCH_TARGET_VERSION, in cmake/torch.cmake).

#include <torch/csrc/stable/library.h>

#include <cstdio>

#include "fastdecode/fastdecode_torch.h"
#include "torch/operations.h"
#include "torch/schemas.h"

namespace fastdecode::torch_ops {
namespace {

using Kernel = void (*)(StableIValue*, uint64_t, uint64_t);

struct Operation {
  const char* name;
  const char* schema;
  Kernel kernel;
};

constexpr Operation kOperations[] = {
    {"sample", kSample, TORCH_BOX(&sample)},
    {"advance", kAdvance, TORCH_BOX(&advance)},
    {"sample_advance", kSampleAdvance, TORCH_BOX(&sample_advance)},
    {"linear", kLinear, TORCH_BOX(&linear)},
    {"embed", kEmbed, TORCH_BOX(&embed)},
    {"rms_norm", kRmsNorm, TORCH_BOX(&rms_norm)},
    {"add_rms_norm", kAddRmsNorm, TORCH_BOX(&add_rms_norm)},
    {"swiglu", kSwiglu, TORCH_BOX(&swiglu)},
    {"rope_append", kRopeAppend, TORCH_BOX(&rope_append)},
    {"attend", kAttend, TORCH_BOX(&attend)},
};

void check(AOTITorchError result, const char* what, const char* name) {
  if (result != TORCH_SUCCESS) {
    throw std::runtime_error(std::string("libfastdecode_torch.so: libtorch refused the ") + what +
                             " of torch.ops.fastdecode." + name);
  }
}

// Whether all operations are registered now, and by us. libtorch takes a schema once only, so that
// the first one that it refuses says that another has come before.
bool register_all() {
  TorchLibraryHandle definitions = nullptr, kernels = nullptr;
  check(aoti_torch_library_init_fragment("fastdecode", __FILE__, __LINE__, &definitions),
        "namespace", "*");
  for (const Operation& operation : kOperations) {
    if (aoti_torch_library_def(definitions, operation.schema) == TORCH_SUCCESS) continue;
    if (&operation != kOperations) check(TORCH_FAILURE, "schema", operation.name);
    std::fputs(
        "libfastdecode_torch.so: torch.ops.fastdecode is registered already, by Python's "
        "fastdecode.ops or by another copy of this library; that one stays in use.\n",
        stderr);
    aoti_torch_delete_library_object(definitions);
    return false;
  }
  check(aoti_torch_library_init_impl("fastdecode", "CPU", __FILE__, __LINE__, &kernels),
        "namespace", "*");
  for (const Operation& operation : kOperations) {
    check(torch_library_impl(kernels, operation.name, operation.kernel, TORCH_ABI_VERSION),
          "function", operation.name);
  }
  return true;  // the handles live as long as the process
}

const bool registered = register_all();

}  // namespace
}  // namespace fastdecode::torch_ops

int32_t fastdecode_torch_registered(void) {
  return fastdecode::torch_ops::registered ? 1 : 0;
}
