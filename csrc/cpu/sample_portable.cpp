// The sampler with the baseline's instructions.
#define SAMPLE_GROUP sample_group_portable
#include "cpu/sample_kernel.inc"
