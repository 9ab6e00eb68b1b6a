# BITNET_SANITIZE and BITNET_COVERAGE apply to every object of this project, kernels included. Tests run with
# BITNET_TEST_ENVIRONMENT: the suppressions (third-party frames only, each with its reason) and strict options.
set(BITNET_TEST_ENVIRONMENT "")
if(BITNET_SANITIZE)
  add_compile_options(-fsanitize=${BITNET_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${BITNET_SANITIZE})
  set(suppressions ${PROJECT_SOURCE_DIR}/tests/sanitizers)
  set(BITNET_TEST_ENVIRONMENT
    "TSAN_OPTIONS=suppressions=${suppressions}/tsan.supp:halt_on_error=1:second_deadlock_stack=1:allocator_may_return_null=1"
    "LSAN_OPTIONS=suppressions=${suppressions}/lsan.supp:print_suppressions=0"
    # Not detect_stack_use_after_return: g++ 12 misaligns 64-byte vectors in its fake stack frames (GCC PR 110027).
    # An allocation that cannot be is an Error of ours, which tests expect, not an end of the program.
    "ASAN_OPTIONS=detect_stack_use_after_return=0:strict_string_checks=1:allocator_may_return_null=1" "UBSAN_OPTIONS=print_stacktrace=1")
endif()
if(BITNET_COVERAGE)
  add_compile_options(--coverage)
  add_link_options(--coverage)
endif()
