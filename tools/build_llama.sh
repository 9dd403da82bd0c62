#!/usr/bin/env bash
# Builds llama.cpp for the CPU (libllama and ggml, nothing else) and installs it to a folder, for examples/llamacpp and
# its test:
#
#     tools/build_llama.sh FOLDER             # FOLDER/include/llama.h, FOLDER/lib/libllama.so, ...
#     FASTDECODE_LLAMA=FOLDER python -m pytest -m "" tests/test_llamacpp.py
#
# The sources are those that the sdist of llama-cpp-python has in it. They come by pip, or from the sdist that LLAMA_SDIST
# names. A folder that holds the same version already is left as it is. JOBS (default: the processors) compilers run at
# once; the whole takes about five minutes on two cores. LLAMA_OPENMP=ON builds ggml with OpenMP's threads, which is its
# default, to compare both (benchmarks/bench_llamacpp.py).
set -euo pipefail

VERSION=0.3.36
OPENMP=${LLAMA_OPENMP:-OFF}
[ $# = 1 ] || { echo "usage: tools/build_llama.sh FOLDER" >&2; exit 2; }
case $OPENMP in
    ON) built="$VERSION with OpenMP" ;;
    OFF) built=$VERSION ;;
    *) echo "LLAMA_OPENMP=$OPENMP: must be ON or OFF" >&2; exit 2 ;;
esac
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ "$(cat "$folder/.version" 2>/dev/null)" = "$built" ] && { echo "$folder has it already"; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sdist=${LLAMA_SDIST:-}
if [ -z "$sdist" ]; then
    # pip prepares the metadata of what it downloads, with build packages that it fetches by itself.
    "${PYTHON:-python3}" -m pip download --quiet --no-binary :all: --no-deps -d "$work" "llama-cpp-python==$VERSION"
    sdist=$(echo "$work"/llama_cpp_python-*.tar.gz)
fi
tar -xzf "$sdist" -C "$work"
source=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp)

# No OpenMP by default: fastdecode has threads of its own, and one pool of threads in a program is enough.
cmake -S "$source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$folder" \
    -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_RPATH='$ORIGIN' -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DGGML_OPENMP="$OPENMP" >"$work/configure.log" ||
    { cat "$work/configure.log" >&2; exit 1; }
cmake --build "$work/build" --target llama -j "${JOBS:-$(nproc)}"
cmake --install "$work/build"
echo "$built" >"$folder/.version"
echo "$folder has llama.cpp of llama-cpp-python $built"
