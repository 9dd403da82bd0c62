// Which instruction set the kernels with more than one form run with.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best that this processor and operating system have; FASTDECODE_CPU_ISA (portable, avx2,
// avx512, avx512bf16), read once, may lower it.
Isa cpu_isa();

// FASTDECODE_INVALID_ARGUMENT, with the message set, if FASTDECODE_CPU_ISA names an instruction set
// that is unknown or not to be had here.
fastdecode_result check_isa();

const char* isa_name(Isa isa);

}  // namespace fastdecode
