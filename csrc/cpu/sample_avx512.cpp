// The sampler with AVX-512.
#define SAMPLE_GROUP sample_group_avx512
#include "cpu/sample_kernel.inc"
