# bitnet_add_test(<name> SOURCES … [LIBS …] [LABELS …] [ISAS]): a GoogleTest executable bitnet_test_<name> that is
# one ctest `<name>` — or, with ISAS, one ctest per compiled ISA, `<name>.<isa>`, run with BITNET_ISA=<isa>; an ISA
# that the CPU lacks counts as skipped (77, from bitnet-testing's main).
bitnet_find(GTest libgtest-dev)
function(bitnet_add_test name)
  cmake_parse_arguments(ARG "ISAS" "" "SOURCES;LIBS;LABELS" ${ARGN})
  string(REPLACE "." "_" exe bitnet_test_${name})
  add_executable(${exe} ${ARG_SOURCES})
  target_link_libraries(${exe} PRIVATE ${ARG_LIBS} bitnet-testing)
  bitnet_warnings(${exe})
  set(unset "BITNET_MODEL=unset:;BITNET_DEVICE=unset:")   # what a user chose for `bitnet` is not what tests expect
  if(ARG_ISAS)
    bitnet_isa_names(isas)
    foreach(isa IN LISTS isas)
      add_test(NAME ${name}.${isa} COMMAND ${exe})
      set_tests_properties(${name}.${isa} PROPERTIES ENVIRONMENT "BITNET_ISA=${isa};${BITNET_TEST_ENVIRONMENT}"
        ENVIRONMENT_MODIFICATION "${unset}" SKIP_RETURN_CODE 77
        LABELS "isa;${ARG_LABELS}" TIMEOUT 300)
    endforeach()
  else()
    add_test(NAME ${name} COMMAND ${exe})
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "${BITNET_TEST_ENVIRONMENT}"
      ENVIRONMENT_MODIFICATION "${unset}" SKIP_RETURN_CODE 77
      LABELS "${ARG_LABELS}" TIMEOUT 300)
  endif()
endfunction()
