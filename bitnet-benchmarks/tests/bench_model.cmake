# `bitnet bench` and `bitnet-benchmarks` together, as processes: a tiny model is measured, the file compared with itself
# and with one that is made slower, and drawn. No test looks at how fast anything is.
#   cmake -DBITNET=… -DTOOL=… -DCONFIG=….json -DWORK=… -P bench_model.cmake
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})

# run(<expected exit code> <command…>): `log` is what it wrote.
function(run expected)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE err)
  if(NOT status EQUAL expected)
    message(FATAL_ERROR "${ARGN}\nended with ${status} instead of ${expected}:\n${out}${err}")
  endif()
  set(log "${out}${err}" PARENT_SCOPE)
  set(out "${out}" PARENT_SCOPE)
endfunction()

run(0 ${BITNET} synth --config ${CONFIG} -o ${WORK}/tiny.gguf)
run(0 ${BITNET} bench -m ${WORK}/tiny.gguf -p 32 -n 4 -b 1,2 -t 1,2 -r 2 -o json)
set(measured "${out}")
file(WRITE ${WORK}/measured.json "${measured}")
foreach(key "machine;read_gbps" "machine;int8_gops" "machine;f32_gflops" "model;peak_rss_bytes" "model;weight_bits"
    "results;0;tokens_per_second" "results;5;samples;1" "results;5;limit_tokens_per_second")
  string(JSON value GET "${out}" ${key})
  if(NOT value GREATER 0)
    message(FATAL_ERROR "${key} is ${value}")
  endif()
endforeach()

run(0 ${TOOL} compare ${WORK}/measured.json ${WORK}/measured.json)
if(NOT log MATCHES "nothing is slower")
  message(FATAL_ERROR "a file compared with itself: ${log}")
endif()

# Samples that are the same everywhere, then a test at half the speed.
string(JSON old SET "${measured}" results 0 samples "[100.0, 101.0, 99.0]")
string(JSON new SET "${measured}" results 0 samples "[50.0, 51.0, 49.0]")
file(WRITE ${WORK}/old.json "${old}")
file(WRITE ${WORK}/new.json "${new}")
run(1 ${TOOL} compare ${WORK}/old.json ${WORK}/new.json --threshold 5%)
if(NOT log MATCHES "\\| pp32, 1 thread \\| [^\n]*SLOWER" OR NOT log MATCHES "1 of 6 tests are slower")
  message(FATAL_ERROR "half the speed: ${log}")
endif()
run(0 ${TOOL} compare ${WORK}/new.json ${WORK}/old.json)
run(0 ${TOOL} compare ${WORK}/old.json ${WORK}/new.json --threshold 60%)
run(2 ${TOOL} compare ${WORK}/old.json)
run(2 ${TOOL} compare ${WORK}/old.json ${WORK}/none.json)

run(0 ${TOOL} report ${WORK}/old.json ${WORK}/new.json -o ${WORK}/report.html)
file(READ ${WORK}/report.html html)
foreach(text "<!DOCTYPE html>" "<svg " "tg4@b2" "Scaling over threads" "Scaling over the batch" "</html>")
  string(FIND "${html}" "${text}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "report.html has no '${text}'")
  endif()
endforeach()
