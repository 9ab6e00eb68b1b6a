# usage: cmake -DSOURCE= -DTREE= -DPREFIX= -DCXX= [-DLAUNCHER= -DOPTIONS= -DFAILS= -DABSENT= -DRUN= -DLAUNCH= -DARGUMENT=] -P consume.cmake
# Configures, builds and runs a downstream project from nothing; see bitnet_package_test() in CMakeLists.txt.
string(REPLACE "|" ";" OPTIONS "${OPTIONS}")
file(REMOVE_RECURSE ${TREE})
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${TREE} -G Ninja -DCMAKE_PREFIX_PATH=${PREFIX} -DCMAKE_CXX_COMPILER=${CXX}
    -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER} -DCMAKE_BUILD_TYPE=Debug ${OPTIONS}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
message(STATUS "${output}")
if(FAILS)
  string(REGEX REPLACE "[ \n]+" " " flat "${output}")   # CMake wraps its messages
  if(status EQUAL 0 OR NOT flat MATCHES "${FAILS}")
    message(FATAL_ERROR "expected a failure that says: ${FAILS}")
  endif()
  return()
endif()
if(NOT status EQUAL 0)
  message(FATAL_ERROR "configuring failed")
endif()
if(ABSENT)
  file(STRINGS ${TREE}/CMakeCache.txt found REGEX "${ABSENT}")
  if(found)
    message(FATAL_ERROR "looked for ${ABSENT}: ${found}")
  endif()
endif()
execute_process(COMMAND ${CMAKE_COMMAND} --build ${TREE} --parallel 2 COMMAND_ERROR_IS_FATAL ANY)
if(RUN)
  string(REPLACE "|" ";" LAUNCH "${LAUNCH}")
  execute_process(COMMAND ${LAUNCH} ${TREE}/consumer ${ARGUMENT} COMMAND_ERROR_IS_FATAL ANY)
endif()
