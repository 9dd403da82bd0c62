# libfastdecode_cuda.so: the sampler and the grammar on an NVIDIA GPU. Included by CMakeLists.txt.
# A project that only includes this one does not get it unasked: it takes half a minute.
set(FASTDECODE_CUDA_DEFAULT OFF)
if(PROJECT_IS_TOP_LEVEL)
  set(FASTDECODE_CUDA_DEFAULT AUTO)
endif()
set(FASTDECODE_CUDA ${FASTDECODE_CUDA_DEFAULT} CACHE STRING
  "Build libfastdecode_cuda.so: ON, OFF, or AUTO, which is where a CUDA compiler is found")
set_property(CACHE FASTDECODE_CUDA PROPERTY STRINGS AUTO ON OFF)

set(FASTDECODE_BUILDS_CUDA OFF)
if(FASTDECODE_CUDA STREQUAL "AUTO" OR FASTDECODE_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(FASTDECODE_BUILDS_CUDA ON)
  elseif(FASTDECODE_CUDA STREQUAL "AUTO")
    message(STATUS "libfastdecode_cuda.so is not built: there is no CUDA compiler (nvcc) in PATH")
  else()
    message(FATAL_ERROR "FASTDECODE_CUDA = ${FASTDECODE_CUDA}: needs a CUDA compiler; put nvcc into "
      "PATH or name it in CUDACXX, or build with -DFASTDECODE_CUDA=OFF")
  endif()
endif()
if(NOT FASTDECODE_BUILDS_CUDA)
  return()
endif()

# Machine code for sm_80 and sm_90, and PTX of the latter for what comes after.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)

add_library(fastdecode_cuda SHARED csrc/cuda/library.cu csrc/core/error.cpp)
target_include_directories(fastdecode_cuda PRIVATE csrc csrc/include)
# For what sets up the arguments, and for the headers.
target_link_libraries(fastdecode_cuda INTERFACE fastdecode)
target_compile_definitions(fastdecode_cuda PRIVATE FASTDECODE_CUDA_BUILDING)
# No fused multiply-add on the GPU either. Architectures are compiled side by side.
target_compile_options(fastdecode_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;--threads=2>)
set_target_properties(fastdecode_cuda PROPERTIES EXPORT_NAME cuda CUDA_RUNTIME_LIBRARY Static
  SOVERSION ${FASTDECODE_ABI_VERSION})
target_link_options(fastdecode_cuda PRIVATE -static-libstdc++ -static-libgcc -Wl,--no-undefined
  "LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports_cuda.map")
add_library(fastdecode::cuda ALIAS fastdecode_cuda)
