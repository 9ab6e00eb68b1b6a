# bitnet_add_test(<name> SOURCES … [LIBS …] [LABELS …] [ISAS | PROCESSES <n>]): a GoogleTest executable
# bitnet_test_<name> that is one ctest `<name>` — or, with ISAS, one ctest per compiled ISA, `<name>.<isa>`, run with
# BITNET_ISA=<isa>; an ISA that the CPU lacks counts as skipped (77, from bitnet-testing's main). With PROCESSES mpirun
# starts so many of it, each with one thread (find_package(MPI) before).
bitnet_find(GTest libgtest-dev)
set(BITNET_TEST_TIMEOUT 300)   # seconds; sanitizers make the trainings of tests several times slower
if(BITNET_SANITIZE)
  set(BITNET_TEST_TIMEOUT 1200)
endif()
set(BITNET_MPIRUN_FLAGS --oversubscribe --allow-run-as-root --bind-to none -n)   # the number of processes follows
function(bitnet_add_test name)
  cmake_parse_arguments(ARG "ISAS" "PROCESSES" "SOURCES;LIBS;LABELS" ${ARGN})
  string(REPLACE "." "_" exe bitnet_test_${name})
  add_executable(${exe} ${ARG_SOURCES})
  target_link_libraries(${exe} PRIVATE ${ARG_LIBS} bitnet-testing)
  bitnet_warnings(${exe})
  set(unset "BITNET_MODEL=unset:;BITNET_DEVICE=unset:")   # what a user chose for `bitnet` is not what tests expect
  list(APPEND unset "BITNET_OPENCL_TUNING=unset:" "XDG_DATA_HOME=set:${PROJECT_BINARY_DIR}/test-data")
  list(APPEND unset "XDG_CACHE_HOME=set:${PROJECT_BINARY_DIR}/test-cache")   # nor do they leave programs in the user's
  if(ARG_ISAS)
    bitnet_isa_names(isas)
    foreach(isa IN LISTS isas)
      add_test(NAME ${name}.${isa} COMMAND ${exe})
      set_tests_properties(${name}.${isa} PROPERTIES ENVIRONMENT "BITNET_ISA=${isa};${BITNET_TEST_ENVIRONMENT}"
        ENVIRONMENT_MODIFICATION "${unset}" SKIP_RETURN_CODE 77
        LABELS "isa;${ARG_LABELS}" TIMEOUT ${BITNET_TEST_TIMEOUT})
    endforeach()
  else()
    set(mpirun "")
    set(environment "${BITNET_TEST_ENVIRONMENT}")
    if(ARG_PROCESSES)
      set(mpirun ${MPIEXEC_EXECUTABLE} ${BITNET_MPIRUN_FLAGS} ${ARG_PROCESSES})
      list(APPEND environment BITNET_THREADS=1)
    endif()
    add_test(NAME ${name} COMMAND ${mpirun} $<TARGET_FILE:${exe}>)
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "${environment}"
      ENVIRONMENT_MODIFICATION "${unset}" SKIP_RETURN_CODE 77
      LABELS "${ARG_LABELS}" TIMEOUT ${BITNET_TEST_TIMEOUT})
  endif()
endfunction()

# bitnet_emulated_tiles(<test> <source> <library>): adds to <test> a tile algorithm of bitnet-<library> on emulated
# tiles (bitnet/testing/emulated_tiles.hpp): <source> compiled as kernels are, for the weakest instruction set and for the
# one that AMX's vocabulary builds on.
function(bitnet_emulated_tiles test source library)
  foreach(row IN LISTS BITNET_ISAS_${CMAKE_SYSTEM_PROCESSOR})
    string(REPLACE "|" ";" row "${row}")
    list(GET row 0 isa)
    list(GET row 1 flags)
    separate_arguments(flags)
    if(NOT isa MATCHES "^(scalar|avx512_vbmi)$")
      continue()
    endif()
    get_filename_component(stem ${source} NAME_WE)
    set(object ${test}-${stem}-${isa})
    add_library(${object} OBJECT ${source})
    target_compile_features(${object} PRIVATE cxx_std_20)
    target_include_directories(${object} PRIVATE ${PROJECT_SOURCE_DIR}/bitnet-${library}/src
      ${PROJECT_SOURCE_DIR}/bitnet-${library}/include ${PROJECT_SOURCE_DIR}/bitnet-core/include
      ${PROJECT_SOURCE_DIR}/tests/support/include ${BITNET_SIMD_INCLUDE_DIR})
    target_compile_definitions(${object} PRIVATE BITNET_ISA=${isa})
    target_compile_options(${object} PRIVATE ${flags} -O2 -ffp-contract=off -fno-math-errno
      $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized -Wno-psabi> $<$<CXX_COMPILER_ID:Clang>:-Wno-psabi>)
    bitnet_warnings(${object})
    target_link_libraries(${test} PRIVATE ${object})
  endforeach()
endfunction()
