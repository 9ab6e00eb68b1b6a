// Names of OpenCL's status codes and their translation to bitnet::Error.
#include <fmt/format.h>

#include "cl_objects.hpp"

namespace bitnet::gpu {
namespace {

struct StatusName {
  cl_int status;
  std::string_view name;
};

constexpr cl_int kPlatformNotFoundKhr = -1001;  // of the ICD loader: no driver is installed
// Of cl_khr_command_buffer.
constexpr cl_int kInvalidCommandBufferKhr = -1138, kInvalidSyncPointWaitListKhr = -1139,
                 kIncompatibleCommandQueueKhr = -1140;

#define BITNET_CL_STATUS(name) \
  { name, #name }
constexpr StatusName kStatusNames[] = {
    BITNET_CL_STATUS(CL_SUCCESS),
    BITNET_CL_STATUS(CL_DEVICE_NOT_FOUND),
    BITNET_CL_STATUS(CL_DEVICE_NOT_AVAILABLE),
    BITNET_CL_STATUS(CL_COMPILER_NOT_AVAILABLE),
    BITNET_CL_STATUS(CL_MEM_OBJECT_ALLOCATION_FAILURE),
    BITNET_CL_STATUS(CL_OUT_OF_RESOURCES),
    BITNET_CL_STATUS(CL_OUT_OF_HOST_MEMORY),
    BITNET_CL_STATUS(CL_PROFILING_INFO_NOT_AVAILABLE),
    BITNET_CL_STATUS(CL_MEM_COPY_OVERLAP),
    BITNET_CL_STATUS(CL_IMAGE_FORMAT_MISMATCH),
    BITNET_CL_STATUS(CL_IMAGE_FORMAT_NOT_SUPPORTED),
    BITNET_CL_STATUS(CL_BUILD_PROGRAM_FAILURE),
    BITNET_CL_STATUS(CL_MAP_FAILURE),
    BITNET_CL_STATUS(CL_MISALIGNED_SUB_BUFFER_OFFSET),
    BITNET_CL_STATUS(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST),
    BITNET_CL_STATUS(CL_COMPILE_PROGRAM_FAILURE),
    BITNET_CL_STATUS(CL_LINKER_NOT_AVAILABLE),
    BITNET_CL_STATUS(CL_LINK_PROGRAM_FAILURE),
    BITNET_CL_STATUS(CL_DEVICE_PARTITION_FAILED),
    BITNET_CL_STATUS(CL_KERNEL_ARG_INFO_NOT_AVAILABLE),
    BITNET_CL_STATUS(CL_INVALID_VALUE),
    BITNET_CL_STATUS(CL_INVALID_DEVICE_TYPE),
    BITNET_CL_STATUS(CL_INVALID_PLATFORM),
    BITNET_CL_STATUS(CL_INVALID_DEVICE),
    BITNET_CL_STATUS(CL_INVALID_CONTEXT),
    BITNET_CL_STATUS(CL_INVALID_QUEUE_PROPERTIES),
    BITNET_CL_STATUS(CL_INVALID_COMMAND_QUEUE),
    BITNET_CL_STATUS(CL_INVALID_HOST_PTR),
    BITNET_CL_STATUS(CL_INVALID_MEM_OBJECT),
    BITNET_CL_STATUS(CL_INVALID_IMAGE_FORMAT_DESCRIPTOR),
    BITNET_CL_STATUS(CL_INVALID_IMAGE_SIZE),
    BITNET_CL_STATUS(CL_INVALID_SAMPLER),
    BITNET_CL_STATUS(CL_INVALID_BINARY),
    BITNET_CL_STATUS(CL_INVALID_BUILD_OPTIONS),
    BITNET_CL_STATUS(CL_INVALID_PROGRAM),
    BITNET_CL_STATUS(CL_INVALID_PROGRAM_EXECUTABLE),
    BITNET_CL_STATUS(CL_INVALID_KERNEL_NAME),
    BITNET_CL_STATUS(CL_INVALID_KERNEL_DEFINITION),
    BITNET_CL_STATUS(CL_INVALID_KERNEL),
    BITNET_CL_STATUS(CL_INVALID_ARG_INDEX),
    BITNET_CL_STATUS(CL_INVALID_ARG_VALUE),
    BITNET_CL_STATUS(CL_INVALID_ARG_SIZE),
    BITNET_CL_STATUS(CL_INVALID_KERNEL_ARGS),
    BITNET_CL_STATUS(CL_INVALID_WORK_DIMENSION),
    BITNET_CL_STATUS(CL_INVALID_WORK_GROUP_SIZE),
    BITNET_CL_STATUS(CL_INVALID_WORK_ITEM_SIZE),
    BITNET_CL_STATUS(CL_INVALID_GLOBAL_OFFSET),
    BITNET_CL_STATUS(CL_INVALID_EVENT_WAIT_LIST),
    BITNET_CL_STATUS(CL_INVALID_EVENT),
    BITNET_CL_STATUS(CL_INVALID_OPERATION),
    BITNET_CL_STATUS(CL_INVALID_GL_OBJECT),
    BITNET_CL_STATUS(CL_INVALID_BUFFER_SIZE),
    BITNET_CL_STATUS(CL_INVALID_MIP_LEVEL),
    BITNET_CL_STATUS(CL_INVALID_GLOBAL_WORK_SIZE),
    BITNET_CL_STATUS(CL_INVALID_PROPERTY),
    BITNET_CL_STATUS(CL_INVALID_IMAGE_DESCRIPTOR),
    BITNET_CL_STATUS(CL_INVALID_COMPILER_OPTIONS),
    BITNET_CL_STATUS(CL_INVALID_LINKER_OPTIONS),
    BITNET_CL_STATUS(CL_INVALID_DEVICE_PARTITION_COUNT),
    {kPlatformNotFoundKhr, "CL_PLATFORM_NOT_FOUND_KHR"},
    {kInvalidCommandBufferKhr, "CL_INVALID_COMMAND_BUFFER_KHR"},
    {kInvalidSyncPointWaitListKhr, "CL_INVALID_SYNC_POINT_WAIT_LIST_KHR"},
    {kIncompatibleCommandQueueKhr, "CL_INCOMPATIBLE_COMMAND_QUEUE_KHR"},
};
#undef BITNET_CL_STATUS

}  // namespace

std::string error_name(cl_int status) {
  for (const StatusName& known : kStatusNames)
    if (known.status == status) return std::string(known.name);
  return fmt::format("OpenCL error {}", status);
}

cl_int state_of(cl_event event) noexcept {
  cl_int state = CL_COMPLETE;
  const cl_int status =
      clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, nullptr);
  return status == CL_SUCCESS ? state : status;
}

bool means_memory(cl_int status) {
  return status == CL_MEM_OBJECT_ALLOCATION_FAILURE || status == CL_OUT_OF_HOST_MEMORY ||
         status == CL_OUT_OF_RESOURCES || status == CL_INVALID_BUFFER_SIZE;
}

void check(cl_int status, std::string_view call, SourceLocation where) {
  if (status == CL_SUCCESS) return;
  throw Error(means_memory(status) ? ErrorCode::kOutOfMemory : ErrorCode::kDevice,
              fmt::format("{} failed with {}", call, error_name(status)), where);
}

void check_op(cl_int status, std::string_view call, SourceLocation where) {
  if (status == CL_SUCCESS) return;
  throw Error(ErrorCode::kDevice, fmt::format("{} failed with {}", call, error_name(status)), where);
}

}  // namespace bitnet::gpu
