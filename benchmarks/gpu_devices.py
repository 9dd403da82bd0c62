"""What the model of a step knows of devices. Where a figure is not the vendor's, the comment says whose it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """``bandwidth``: bytes per second of memory, by the vendor. ``achieved``: the share of it that a product reads at
    best; ``summed``: that a sum over large memory reads, from which floors are computed. ``clock``: Hz. ``multiply``:
    cycles for which an m16n8k16 product of bfloat16 into float32 takes the tensor core of one of a multiprocessor's
    four schedulers. ``latency``: seconds until a read of memory arrives. The others are limits of a multiprocessor;
    ``shared`` in bytes.
    """

    name: str
    arch: int
    multiprocessors: int
    clock: float
    bandwidth: float
    achieved: float
    summed: float
    multiply: float
    shared: int
    warps: int
    programs: int
    registers: int = 65536
    latency: float = 0.6e-6

    @property
    def reads(self) -> float:
        """Bytes per second of a product."""
        return self.bandwidth * self.achieved

    @property
    def best(self) -> float:
        """Bytes per second of anything."""
        return self.bandwidth * self.summed


KB = 1024

DEVICES = {
    # NVIDIA A100 datasheet (80 GB SXM): 2,039 GB/s, 108 multiprocessors, 1,410 MHz boost, 312 TFLOPS bfloat16.
    # Shares as the H200's: an assumption, here and below.
    "a100": Device("A100 80 GB SXM", 80, 108, 1.41e9, 2.039e12, 0.87, 0.91, 8, 164 * KB, 64, 32),
    # Ada whitepaper (RTX 4090): 1,008 GB/s, 128 multiprocessors, 2,520 MHz boost, 165 TFLOPS bfloat16 into float32.
    "rtx4090": Device("RTX 4090", 89, 128, 2.52e9, 1.008e12, 0.87, 0.91, 32, 100 * KB, 48, 24),
    # NVIDIA H100 datasheet (SXM): 3,350 GB/s, 132 multiprocessors, 989 TFLOPS bfloat16; 1,830 MHz is the clock at
    # which that holds.
    "h100": Device("H100 SXM", 90, 132, 1.83e9, 3.35e12, 0.87, 0.91, 4, 228 * KB, 64, 32),
    # NVIDIA H200 datasheet: 4,800 GB/s; the rest as the H100. The shares are measured (benchmarks/results/
    # h200-2026-11-26.json): torch's product of a 4 GB matrix and a vector read 4.17 TB/s, torch's sum 4.37.
    "h200": Device("H200 SXM", 90, 132, 1.83e9, 4.8e12, 0.868, 0.911, 4, 228 * KB, 64, 32),
}
"""All latencies are assumptions: published measurements of these devices are 0.5 to 0.7 µs. Limits of multiprocessors:
CUDA C++ Programming Guide, table of technical specifications by compute capability.
"""
