# bitnet_find(<package> <apt package> [find_package arguments…]): find_package that names the Debian package to
# install when it is missing; BitNetConfig.cmake names it to consumers too. A macro, so that imported targets and
# variables reach the caller.
macro(bitnet_find package apt)
  set_property(GLOBAL PROPERTY BITNET_APT_${package} ${apt})
  find_package(${package} QUIET ${ARGN})
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "BitNet needs ${package}, which was not found. On Debian: apt-get install ${apt}")
  endif()
endmacro()
