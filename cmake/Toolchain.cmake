# Language level, baseline instruction set, warnings and sanitizers, in one place for every target.
set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
include(GNUInstallDirs)

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

# One binary for every machine since 2009; wider vectors are chosen at run time (Highway, oneDNN).
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v2>)
endif()

set(RECALLD_SANITIZE "" CACHE STRING "Sanitizers to build with: empty, address;undefined, or thread")
if(RECALLD_SANITIZE)
  list(JOIN RECALLD_SANITIZE "," sanitizers)
  # CUDA code has compute-sanitizer for that.
  set(of_cxx COMPILE_LANGUAGE:CXX)
  add_compile_options($<$<${of_cxx}>:-fsanitize=${sanitizers}> $<$<${of_cxx}>:-fno-omit-frame-pointer>
                      $<$<${of_cxx}>:-fno-sanitize-recover=all>)
  add_link_options(-fsanitize=${sanitizers})
  # GCC warns of values that cannot be uninitialised once its checks stand between where they are set and used.
  add_compile_options($<$<${of_cxx}>:-Wno-error=maybe-uninitialized>)
  if("thread" IN_LIST RECALLD_SANITIZE)
    add_compile_definitions(BOOST_ASIO_DISABLE_FENCED_BLOCK)  # TSan does not understand its fences
  endif()
endif()

# Warnings for our own code; link this privately to every target of ours.
add_library(recalld_warnings INTERFACE)
target_compile_options(recalld_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast
                                                  -Wcast-qual -Woverloaded-virtual -Wnull-dereference)
option(RECALLD_WERROR "Treat warnings as errors" OFF)
if(RECALLD_WERROR)
  target_compile_options(recalld_warnings INTERFACE -Werror)
endif()
