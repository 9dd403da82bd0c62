/* fastdecode for programs that use libtorch without Python: libfastdecode_torch.so.
 *
 * Loading the library registers torch.ops.fastdecode.* for tensors on the CPU, with the schemas of
 * Python's fastdecode.ops, so that AOTInductor packages that call them can run. They use up to as
 * many threads as libtorch is set to, and throw std::invalid_argument for a wrong argument, with a
 * message that names it. FASTDECODE_BACKEND is read by Python alone.
 *
 * A program that links the library need not call anything; but a linker that drops unused libraries
 * (--as-needed) keeps it only if the program calls the function below.
 */
#ifndef FASTDECODE_FASTDECODE_TORCH_H
#define FASTDECODE_FASTDECODE_TORCH_H

#include <stdint.h>

#if defined(FASTDECODE_TORCH_BUILDING)
#define FASTDECODE_TORCH_API __attribute__((visibility("default")))
#else
#define FASTDECODE_TORCH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 1 if torch.ops.fastdecode.* on the CPU are those of this library. 0 if somebody had registered
 * them before, such as Python's fastdecode.ops: then the library has left everything as it was, and
 * said so on standard error. */
FASTDECODE_TORCH_API int32_t fastdecode_torch_registered(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTDECODE_FASTDECODE_TORCH_H */
