#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most nine minutes: build, test every Triton kernel on the device
# against the reference, bit by bit, then time it. Needs no network: a machine with torch for CUDA, triton, transformers,
# cmake, ninja, pybind11 and pytest. Results go to $OUT, or to benchmarks/results where that is not set.
#
#     benchmarks/gpu_check.sh            # on a machine with a GPU
#     benchmarks/gpu_check.sh --dry-run  # without one: the same steps, kernels interpreted, the timing on the CPU
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT"

if [ "${1:-}" = "--dry-run" ]; then
  "$PYTHON" -m pytest -q -x tests/triton_kernels
  "$PYTHON" -m benchmarks.gpu_sample --dry-run
  exit
fi

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
"$PYTHON" -m pip install --quiet --no-build-isolation --no-deps -e .
"$PYTHON" -m fastdecode env

status=0
timeout 200 "$PYTHON" -m pytest -q tests/triton_kernels 2>&1 | tee "$OUT/gpu-tests.log" || status=$?

name=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())')
file="$OUT/sample-$name-$(date +%F)"
timeout 280 "$PYTHON" -m benchmarks.gpu_sample --json "$file.json" --markdown "$file.md" || status=$?
exit "$status"
