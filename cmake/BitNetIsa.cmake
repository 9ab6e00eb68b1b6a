# One row per instruction-set target, weakest first. Adding an ISA: one row here, one row in
# bitnet-core/simd/bitnet/simd/isa.def, one file bitnet-core/simd/bitnet/simd/<isa>.hpp. Nothing else.
set(BITNET_ISAS_x86_64
  "scalar|"
  "sse41|-msse4.1"
  "avx2|-mavx2 -mfma -mf16c"
  "avx_vnni|-mavx2 -mfma -mf16c -mavxvnni"
  "avx512_vnni|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
  "avx512_vbmi|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mfma -mf16c"
  "amx_int8|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mfma -mf16c -mamx-tile -mamx-int8")
set(BITNET_ISAS_aarch64 "scalar|" "neon|" "neon_dot|-march=armv8.2-a+dotprod")
set(BITNET_SIMD_INCLUDE_DIR ${PROJECT_SOURCE_DIR}/bitnet-core/simd)   # build-only: never installed
set(BITNET_YAML_INCLUDE_DIR ${PROJECT_SOURCE_DIR}/bitnet-core/yaml)   # the same

# bitnet_isa_names(<variable>): the names of this processor's rows.
function(bitnet_isa_names variable)
  set(names ${BITNET_ISAS_${CMAKE_SYSTEM_PROCESSOR}})
  list(TRANSFORM names REPLACE "\\|.*" "")
  set(${variable} "${names}" PARENT_SCOPE)
endfunction()

# bitnet_isa_kernels(<target> <source>): compiles <source> once per ISA into <target>. Each object is built with
# -DBITNET_ISA=<name> and must export exactly one symbol, the table bitnet::…::<name>::kKernels.
function(bitnet_isa_kernels target source)
  get_filename_component(stem ${source} NAME_WE)
  foreach(row IN LISTS BITNET_ISAS_${CMAKE_SYSTEM_PROCESSOR})
    string(REPLACE "|" ";" row "${row}")
    list(GET row 0 isa)
    list(GET row 1 flags)
    separate_arguments(flags)
    set(object ${target}-${stem}-${isa})
    add_library(${object} OBJECT ${source})
    target_compile_features(${object} PRIVATE cxx_std_20)
    target_include_directories(${object} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/src ${CMAKE_CURRENT_SOURCE_DIR}/include
      ${PROJECT_SOURCE_DIR}/bitnet-core/include ${BITNET_SIMD_INCLUDE_DIR})
    target_compile_definitions(${object} PRIVATE BITNET_ISA=${isa})
    # Kernels are optimised in every build type, and float contraction is written, never guessed (docs/numerics.md).
    # With sanitizers -O3 only makes them two to five times slower to compile.
    set(optimise -O3)
    if(BITNET_SANITIZE)
      set(optimise -O1)
    endif()
    target_compile_options(${object} PRIVATE ${flags} ${optimise} -ffp-contract=off -fno-exceptions -fno-rtti
      -fno-math-errno -fvisibility=hidden
      $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized -Wno-psabi> $<$<CXX_COMPILER_ID:Clang>:-Wno-psabi>)
    bitnet_warnings(${object})
    set_target_properties(${object} PROPERTIES POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${object}>)
    string(REGEX REPLACE "^bitnet-" "" component ${target})
    set_property(GLOBAL APPEND PROPERTY BITNET_ISA_OBJECTS_${component} ${object})   # for tests/sanitizers
    if(BITNET_BUILD_TESTS AND NOT BITNET_SANITIZE AND NOT BITNET_COVERAGE)
      add_test(NAME isa_hygiene.${stem}.${isa}
        COMMAND ${PROJECT_SOURCE_DIR}/cmake/check_isa_object.sh ${CMAKE_NM} $<TARGET_OBJECTS:${object}>)
    endif()
  endforeach()
endfunction()
