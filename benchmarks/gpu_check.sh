#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most nine minutes: build, run every kernel's tests on the device against
# the reference, bit by bit, then time kernels, steps, pictures and draws beside their rivals. Needs no network: a machine
# with torch for CUDA, triton, transformers, cmake, ninja and pytest, and nvcc for the CUDA library.
#
#     benchmarks/gpu_check.sh                        # all parts, on a machine with a GPU
#     benchmarks/gpu_check.sh build step rivals      # some of them
#     benchmarks/gpu_check.sh --dry-run              # without a GPU: the timing's code on the CPU, with a tiny model
#
#     build       the package from source, not isolated
#     triton      tests/triton_kernels on the device
#     cuda        tests/cuda on the device
#     decoder     those of tests/decoder that ask for a GPU
#     threads     eight threads of one process draw and decode at once
#     kernels step sample rivals                     figures; these and threads write a file each: benchmarks/gpu_PART.py
#     memcheck racecheck synccheck initcheck         tests/cuda under compute-sanitizer, with what time is left
#     report      all figures in one JSON file, and Markdown tables
#
# Every part has a time limit of its own, and what it found is written as it comes: one that hangs or fails loses nothing
# of the others. Results go to $OUT, or to benchmarks/results. $COMMIT names the source where it is no checkout; $PYTHON
# is the interpreter, and $SECONDS_LEFT, 530 if not set, what all parts together may take.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
DEADLINE=${SECONDS_LEFT:-530}
KEPT=10 # seconds, for the report
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
# Where a process of the tests would take all cores and memory: several run at once.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
if command -v nvcc >/dev/null 2>&1; then
  export FASTDECODE_CUDA=${FASTDECODE_CUDA:-1} # the CUDA library is built too
fi
export PYTHONHASHSEED=0 # processes of the tests must find the same ones in the same order

dry=
if [ "${1:-}" = "--dry-run" ]; then
  dry=--dry-run
  shift
fi
if [ $# -gt 0 ]; then
  parts=$*
elif [ -n "$dry" ]; then
  parts="threads kernels step sample rivals report"
else
  parts="build triton cuda decoder threads kernels step sample rivals memcheck racecheck synccheck initcheck report"
fi

status=0
: >"$OUT/parts.tsv"

note() { # part, exit status, seconds, last line
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$OUT/parts.tsv"
}

# run PART SECONDS COMMAND…: at most so long, and never past the deadline; the output is shown and kept.
run() {
  local part=$1 limit=$2 left=$((DEADLINE - KEPT - SECONDS)) begun=$SECONDS ended last
  shift 2
  if [ "$left" -lt 5 ]; then
    note "$part" "left out" 0 "no time left"
    [[ $part == *check ]] || status=1
    return 1
  fi
  echo "--- $part"
  timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" 2>&1 | tee "$OUT/$part.log"
  ended=${PIPESTATUS[0]}
  last=$(tail -n 1 "$OUT/$part.log" | tr '\t' ' ' | cut -c 1-150)
  [ "$ended" = 124 ] && last="stopped after $((SECONDS - begun)) seconds: $last"
  note "$part" "$ended" "$((SECONDS - begun))" "$last"
  [ "$ended" = 0 ] || status=1
  return "$ended"
}

# Pytest, in several processes where it can: most of the time goes into compiling kernels.
tests() {
  local part=$1 limit=$2
  shift 2
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    set -- -n "$(($(nproc) < 8 ? $(nproc) : 8))" "$@"
  fi
  run "$part" "$limit" "$PYTHON" -m pytest -q -p no:cacheprovider -m "" "$@"
}

figures() { # part, seconds
  run "$1" "$2" "$PYTHON" -m "benchmarks.gpu_$1" --out "$OUT" --commit "$COMMIT" --seconds "$(($2 * 4 / 5))" $dry
}

# Without torch's allocator, which hides writes behind a tensor's end; one process, the compiled library only.
sanitize() { # tool, seconds
  if ! ls fastdecode/lib/libfastdecode_cuda.so* >/dev/null 2>&1; then
    note "$1" "left out" 0 "libfastdecode_cuda.so was not built"
  elif ! command -v compute-sanitizer >/dev/null 2>&1; then
    note "$1" "left out" 0 "compute-sanitizer is not installed"
  elif [ ! -d tests/cuda ]; then
    note "$1" "left out" 0 "there is no tests/cuda"
  else
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$1" "$2" compute-sanitizer --tool "$1" --target-processes all \
      --error-exitcode 86 "$PYTHON" -m pytest -q -x -p no:cacheprovider -m "" tests/cuda -k "on_device and not emulated"
  fi
}

[ -n "$dry" ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || status=1

for part in $parts; do
  case $part in
    build) run build 120 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps -e . && "$PYTHON" -m fastdecode env ;;
    # Its tests in the interpreter and of compilation run on any machine.
    triton) tests triton 130 tests/triton_kernels --ignore tests/triton_kernels/test_interpreter.py --ignore tests/triton_kernels/test_triton_compile.py ;;
    cuda) # its other tests are of the emulation
      if [ -d tests/cuda ]; then
        run cuda 60 "$PYTHON" -m pytest -q -p no:cacheprovider -m "" tests/cuda -k "on_device and not emulated"
      else
        note cuda "left out" 0 "there is no tests/cuda"
      fi
      ;;
    decoder)
      files=$(grep -lE 'device="cuda"|\bDEVICE\b|cuda\.is_available' tests/decoder/test_*.py || true)
      if [ -n "$files" ]; then
        # shellcheck disable=SC2086 # one word for each file
        run decoder 60 "$PYTHON" -m pytest -q -p no:cacheprovider -m "" $files
      else
        note decoder "left out" 0 "none of tests/decoder asks for a GPU"
      fi
      ;;
    threads) figures threads 50 ;;
    kernels) figures kernels 70 ;;
    step) figures step 130 ;;
    sample) figures sample 80 ;;
    rivals) figures rivals 140 ;;
    memcheck | racecheck) sanitize "$part" 90 ;;
    synccheck | initcheck) sanitize "$part" 60 ;;
    report) "$PYTHON" -m benchmarks.gpu_report "$OUT" || status=1 ;;
    *)
      echo "gpu_check.sh: there is no part $part" >&2
      exit 2
      ;;
  esac
done
exit "$status"
