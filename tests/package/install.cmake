# usage: cmake -DTREE=build -DPREFIX=prefix -P install.cmake: installs a build tree into an empty prefix.
file(REMOVE_RECURSE ${PREFIX})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${TREE} --prefix ${PREFIX} COMMAND_ERROR_IS_FATAL ANY)
# Build-only things must not be installed.
file(GLOB_RECURSE stray RELATIVE ${PREFIX} ${PREFIX}/*simd* ${PREFIX}/*testing* ${PREFIX}/*src*)
if(stray)
  message(FATAL_ERROR "installed, but build-only: ${stray}")
endif()
