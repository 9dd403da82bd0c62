/* fastdecode on an NVIDIA GPU: fastdecode.h's sample and advance behind the same structs, in
 * libfastdecode_cuda.so, which is built where a CUDA compiler is found. The structs' init functions
 * are libfastdecode.so's.
 *
 * Every pointer in the structs is one to device memory that the current device can read. Sizes and
 * numbers in the structs are checked before a kernel is launched, with a sentence in
 * fastdecode_cuda_last_error(). What lies in device memory cannot be: a group with a wrong value
 * (a row, weight, set or parameter out of range, ranges that do not ascend) gets status 1, and in
 * advance a mode, step, token or row out of range fails it; nothing is read or written there.
 * set_offsets[sets] alone is believed.
 *
 * Nothing is allocated, copied or waited for, so that calls can be captured in a CUDA graph.
 * Results are those of the CPU library, bit for bit. `threads` is not read. `stream` is a
 * cudaStream_t.
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

/* A fastdecode_result of these functions: CUDA refused a launch; the message says why. */
enum { FASTDECODE_CUDA_ERROR = 3 };

/* Bytes of device memory that a call with these arguments needs as its workspace; 0 for sets of at
 * most 16384 ids. `largest_set`: no set has more ids; 0: vocab. The same for all calls of equal
 * groups, vocab and largest_set. */
FASTDECODE_CUDA_API fastdecode_result fastdecode_cuda_workspace(const fastdecode_sample_args* args,
                                                                int64_t largest_set, size_t* bytes);

/* fastdecode_sample. A group whose set has more than `largest_set` ids may get status 1. The
 * workspace begins at a multiple of 256 bytes, and calls that may overlap need one each. */
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

/* Message of this thread's last failed call here; "" before the first. */
FASTDECODE_CUDA_API const char* fastdecode_cuda_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTDECODE_FASTDECODE_CUDA_H */
