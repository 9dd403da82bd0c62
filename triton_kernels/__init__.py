"""Triton kernels, one file per operation. Installed only as `fastdecode.triton_kernels`."""
