# bitnet_add_library(<name>
#   SOURCES … HEADERS … [PUBLIC deps] [PRIVATE deps] [FIND "pkg [args]" …])
#
# Declares target bitnet-<name> (alias BitNet::<name>) with the project's warnings, include layout and install
# rules, and records its component closure for BitNetConfig.cmake. One call per library: nothing else in the
# tree calls add_library() for a shipped target. HEADERS are relative to include/bitnet/<name>/. FIND lists the
# third-party packages that a consumer of the static library has to find, each declared by bitnet_find() before.
set(BITNET_EXPORTS ${PROJECT_SOURCE_DIR}/cmake/exports.map)
function(bitnet_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;HEADERS;PUBLIC;PRIVATE;FIND" ${ARGN})
  set(target bitnet-${name})
  add_library(${target} ${ARG_SOURCES})
  add_library(BitNet::${name} ALIAS ${target})
  list(TRANSFORM ARG_HEADERS PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/include/bitnet/${name}/")
  target_sources(${target} PUBLIC FILE_SET HEADERS
    BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR}/include FILES ${ARG_HEADERS})
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/src)
  target_compile_features(${target} PUBLIC cxx_std_20)
  bitnet_warnings(${target})
  target_link_libraries(${target} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  set_target_properties(${target} PROPERTIES
    EXPORT_NAME ${name} VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
    CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON INSTALL_RPATH "$ORIGIN"   # the libraries find each other
    VERIFY_INTERFACE_HEADER_SETS ON)      # builds every public header alone: all_verify_interface_header_sets

  if(BUILD_SHARED_LIBS)
    # Only names of namespace bitnet leave a shared library, not the third-party templates compiled into it
    # (docs/decisions/0001-symbol-visibility.md).
    target_link_options(${target} PRIVATE LINKER:--version-script=${BITNET_EXPORTS})
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${BITNET_EXPORTS})
  endif()

  # Component closure: the BitNet::x this library links, public or private (a static archive needs both).
  set(needs "")
  foreach(dep IN LISTS ARG_PUBLIC ARG_PRIVATE)
    if(dep MATCHES "^BitNet::(.+)$")
      list(APPEND needs ${CMAKE_MATCH_1})
    endif()
  endforeach()
  set_property(GLOBAL APPEND PROPERTY BITNET_COMPONENTS ${name})
  set_property(GLOBAL PROPERTY BITNET_NEEDS_${name} "${needs}")
  if(NOT BUILD_SHARED_LIBS)   # public headers show no third-party type: who links shared libraries needs none
    set_property(GLOBAL PROPERTY BITNET_FIND_${name} "${ARG_FIND}")
  endif()
  if(BITNET_INSTALL)
    install(TARGETS ${target} EXPORT BitNet-${name} FILE_SET HEADERS
      ARCHIVE COMPONENT BitNet_Development LIBRARY COMPONENT BitNet_Runtime NAMELINK_COMPONENT BitNet_Development
      RUNTIME COMPONENT BitNet_Runtime)
    install(EXPORT BitNet-${name} NAMESPACE BitNet:: FILE BitNet-${name}-targets.cmake
      DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/BitNet COMPONENT BitNet_Development)
  endif()
endfunction()
