# bitnet_warnings(<target>): the project's warnings; errors in the developer preset.
function(bitnet_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow
    # g++ 12 warns inside its own avx512 headers and libstdc++ (GCC PR 105593, PR 105329)
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-restrict>
    $<$<BOOL:${BITNET_DEVELOPER}>:-Werror>)
endfunction()
