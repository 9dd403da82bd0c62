"""Where kernels can run in this process: on a GPU, or on the CPU in Triton's interpreter."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
