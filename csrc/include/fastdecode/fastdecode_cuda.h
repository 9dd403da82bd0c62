/* fastdecode on an NVIDIA GPU: sample and advance with the structs of fastdecode.h, in
 * libfastdecode_cuda.so, which is built where a CUDA compiler is found. The functions that set up
 * the structs are in libfastdecode.so.
 *
 * Every pointer in the structs points to device memory that the current device can read. Sizes and
 * numbers in the structs are checked before a kernel is launched; fastdecode_cuda_last_error() then
 * says what is wrong. Values in device memory cannot be checked before a launch. A group with a
 * wrong one (a row, weight, set or parameter out of range, or ranges that do not ascend) gets
 * status 1; in advance, a group with a mode, step, token or row out of range fails. No memory out
 * of range is read or written. Only set_offsets[sets] is not checked.
 *
 * The first call on a device loads the kernels there. Apart from that the functions allocate
 * nothing, copy nothing and wait for nothing, so that calls can be captured in a CUDA graph, after
 * one of fastdecode_cuda_workspace or another outside of a capture. They may come from any threads,
 * and leave alone the error that cudaGetLastError returns to the program around them, unless they
 * fail. cudaDeviceReset unloads the kernels: no call may follow it. Results are those of the CPU
 * library, bit for bit. `threads` is not read. `stream` is a cudaStream_t.
 */
#ifndef FASTDECODE_FASTDECODE_CUDA_H
#define FASTDECODE_FASTDECODE_CUDA_H

#include <fastdecode/fastdecode.h>

#if defined(FASTDECODE_CUDA_BUILDING)
#define FASTDECODE_CUDA_API __attribute__((visibility("default")))
#else
#define FASTDECODE_CUDA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* One more fastdecode_result: CUDA refused a launch; the message says why. */
enum { FASTDECODE_CUDA_ERROR = 3 };

/* Bytes of device memory that a call with these arguments needs as its workspace; 0 for sets of at
 * most 16384 tokens. `largest_set`: the most tokens that a set has; 0: vocab. The number depends
 * only on groups, vocab and largest_set: no other field of `args` is read. Loads the kernels on the
 * current device; where CUDA refuses that, as without a GPU, the next launch says why. */
FASTDECODE_CUDA_API fastdecode_result fastdecode_cuda_workspace(const fastdecode_sample_args* args,
                                                                int64_t largest_set, size_t* bytes);

/* fastdecode_sample. A group whose set has more than `largest_set` tokens may get status 1. The
 * workspace's address is a multiple of 256. Calls that may overlap need separate workspaces. */
FASTDECODE_CUDA_API fastdecode_result fastdecode_cuda_sample(const fastdecode_sample_args* args,
                                                             int64_t largest_set, void* workspace,
                                                             size_t workspace_bytes, void* stream);

/* fastdecode_advance. */
FASTDECODE_CUDA_API fastdecode_result fastdecode_cuda_advance(const fastdecode_advance_args* args,
                                                              void* stream);

/* fastdecode_sample_advance; workspace as for fastdecode_cuda_sample. */
FASTDECODE_CUDA_API fastdecode_result fastdecode_cuda_sample_advance(
    const fastdecode_sample_args* sample, const fastdecode_advance_args* advance,
    int64_t largest_set, void* workspace, size_t workspace_bytes, void* stream);

/* Message of this thread's last failed call of this library; "" before the first. */
FASTDECODE_CUDA_API const char* fastdecode_cuda_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTDECODE_FASTDECODE_CUDA_H */
