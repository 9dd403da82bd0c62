# For linkers: find_package(fastdecode) and pkg-config, both wherever the folder is moved to. Included
# by CMakeLists.txt.
include(CMakePackageConfigHelpers)
set(FASTDECODE_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/fastdecode)

# Installs a library. Without FASTDECODE_SYMLINKS the name that linkers look for is a linker script
# in place of a symbolic link, which the zip file of a Python wheel cannot hold.
function(fastdecode_install target)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "STATIC_LIBRARY" OR FASTDECODE_SYMLINKS)
    install(TARGETS ${target} EXPORT fastdecode LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
      ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
    return()
  endif()
  install(TARGETS ${target} EXPORT fastdecode LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_SKIP)
  set(script ${CMAKE_CURRENT_BINARY_DIR}/linker_scripts/lib${target}.so)
  file(WRITE ${script} "/* GNU ld script */\nINPUT(lib${target}.so.${FASTDECODE_ABI_VERSION})\n")
  install(FILES ${script} DESTINATION ${CMAKE_INSTALL_LIBDIR})
endfunction()

# Configures and installs NAME.pc. Its folders are relative to its own: it may be moved.
function(fastdecode_pkg_config name)
  file(RELATIVE_PATH FASTDECODE_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  string(REGEX REPLACE "/$" "" FASTDECODE_PC_PREFIX "${FASTDECODE_PC_PREFIX}")
  foreach(kind LIB INCLUDE)
    if(IS_ABSOLUTE "${CMAKE_INSTALL_${kind}DIR}")
      set(FASTDECODE_PC_${kind}DIR "${CMAKE_INSTALL_${kind}DIR}")
    else()
      set(FASTDECODE_PC_${kind}DIR "\${prefix}/${CMAKE_INSTALL_${kind}DIR}")
    endif()
  endforeach()
  # What a program needs besides: with the static library always, else nothing.
  set(FASTDECODE_PC_STATIC "")
  if(FASTDECODE_TYPE STREQUAL "STATIC")
    set(FASTDECODE_PC_STATIC " -l${FASTDECODE_CXX_LIBRARY} -lm -lpthread -ldl")
  endif()
  configure_file(cmake/${name}.pc.in ${name}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

fastdecode_install(fastdecode)
fastdecode_pkg_config(fastdecode)
if(TARGET fastdecode_cuda)
  fastdecode_install(fastdecode_cuda)
  fastdecode_pkg_config(fastdecode_cuda)
endif()
if(TARGET fastdecode_torch) # its name has no version, so there is no symbolic link
  install(TARGETS fastdecode_torch EXPORT fastdecode LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

install(EXPORT fastdecode NAMESPACE fastdecode:: FILE fastdecode-targets.cmake
  DESTINATION ${FASTDECODE_CMAKE_DIR})
configure_package_config_file(cmake/fastdecode-config.cmake.in fastdecode-config.cmake
  INSTALL_DESTINATION ${FASTDECODE_CMAKE_DIR})
write_basic_package_version_file(fastdecode-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastdecode-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/fastdecode-config-version.cmake DESTINATION ${FASTDECODE_CMAKE_DIR})
install(DIRECTORY csrc/include/fastdecode DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
