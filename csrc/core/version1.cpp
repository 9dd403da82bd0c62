// What programs call that were compiled against version 1 of fastdecode.h. Its init functions did
// not know the size of the caller's struct, so these write nothing but the field `size`, with which
// every struct begins. With size 0 each function refuses the struct, and says why. The header has
// functions of the same names, local to each program, which pass the size.

#include <stddef.h>

#define FASTDECODE_VERSION1(name)                                                               \
  extern "C" __attribute__((visibility("default"))) void version1_##name(size_t* size) __asm__( \
      "fastdecode_" #name "_init");                                                             \
  void version1_##name(size_t* size) {                                                          \
    if (size != nullptr) *size = 0;                                                             \
  }

FASTDECODE_VERSION1(sample_args)
FASTDECODE_VERSION1(advance_args)
FASTDECODE_VERSION1(decode_args)
FASTDECODE_VERSION1(rope_append_args)
FASTDECODE_VERSION1(attend_args)
