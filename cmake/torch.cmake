# libfastdecode_torch.so: torch.ops.fastdecode.* in C++, for programs that use libtorch without
# Python. Included by CMakeLists.txt.
option(FASTDECODE_TORCH "Build libfastdecode_torch.so, which needs libtorch 2.10 or later" OFF)
if(NOT FASTDECODE_TORCH)
  return()
endif()

find_package(Torch 2.10 REQUIRED)

add_library(fastdecode_torch SHARED csrc/torch/checks.cpp csrc/torch/decode_step.cpp
  csrc/torch/registration.cpp csrc/torch/sampling.cpp)
target_include_directories(fastdecode_torch PRIVATE csrc)
target_include_directories(fastdecode_torch SYSTEM PRIVATE ${TORCH_INCLUDE_DIRS})
# Only what libtorch keeps stable since 2.10 is used: the library runs with that and all later ones.
target_compile_definitions(fastdecode_torch PRIVATE FASTDECODE_TORCH_BUILDING
  TORCH_TARGET_VERSION=0x020a000000000000)
target_compile_options(fastdecode_torch PRIVATE -Wall -Wextra)
# By its path: who links us finds libtorch by the name in our own list of libraries.
target_link_libraries(fastdecode_torch PUBLIC fastdecode PRIVATE $<TARGET_FILE:torch_cpu>)
set_target_properties(fastdecode_torch PROPERTIES EXPORT_NAME torch INSTALL_RPATH "$ORIGIN")
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(fastdecode_torch PRIVATE -Wl,-z,nodelete -Wl,--no-undefined)
endif()
add_library(fastdecode::torch ALIAS fastdecode_torch)
