# BITNET_SANITIZE and BITNET_COVERAGE apply to every object of this project, kernels included.
if(BITNET_SANITIZE)
  add_compile_options(-fsanitize=${BITNET_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${BITNET_SANITIZE})
endif()
if(BITNET_COVERAGE)
  add_compile_options(--coverage)
  add_link_options(--coverage)
endif()
