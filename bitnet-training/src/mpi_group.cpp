// The group of the processes that mpirun started; the only file that sees MPI. A build without it refuses to
// be one of several.
#include <string>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/training/process_group.hpp"

#ifdef BITNET_WITH_MPI
#include <mpi.h>

#include <algorithm>
#include <exception>
#endif

namespace bitnet::training {
namespace {

#ifdef BITNET_WITH_MPI

/// A message of MPI has at most 2^31 − 1 elements: longer ones go in pieces, which keep their order.
constexpr std::size_t kPiece = std::size_t{1} << 30;

void check(int code, const char* doing) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  throw Error(ErrorCode::kIo, std::string("MPI cannot ") + doing + ": " +
                                  std::string(text, static_cast<std::size_t>(length)));
}

class MpiGroup final : public ProcessGroup {
 public:
  MpiGroup() {
    int got = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &got), "start");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "set its error handler");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "tell the rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "tell the number of processes");
    if (got < MPI_THREAD_FUNNELED)
      throw Error(ErrorCode::kUnsupported, "this MPI allows no threads beside the one that calls it");
  }
  ~MpiGroup() override {
    // MPI_Finalize would wait for processes that wait for this one.
    if (std::uncaught_exceptions() > exceptions_) MPI_Abort(MPI_COMM_WORLD, 1);
    withdraw();
    MPI_Finalize();
  }
  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  void send(std::span<const std::byte> bytes, int to, int tag) override {
    for (std::size_t at = 0; at < bytes.size(); at += kPiece)
      check(MPI_Isend(bytes.data() + at, static_cast<int>(std::min(kPiece, bytes.size() - at)), MPI_BYTE, to,
                      tag, MPI_COMM_WORLD, next(sends_)),
            "send");
  }
  void receive(std::span<std::byte> bytes, int from, int tag) override {
    for (std::size_t at = 0; at < bytes.size(); at += kPiece)
      check(MPI_Irecv(bytes.data() + at, static_cast<int>(std::min(kPiece, bytes.size() - at)), MPI_BYTE,
                      from, tag, MPI_COMM_WORLD, next(receives_)),
            "receive");
  }
  void progress() override {
    for (Requests* const requests : {&sends_, &receives_}) check(test(*requests).code, "exchange messages");
  }
  void wait() override {
    for (Requests* const requests : {&sends_, &receives_}) {
      check(MPI_Waitall(static_cast<int>(requests->size()), requests->data(), MPI_STATUSES_IGNORE),
            "exchange messages");
      requests->clear();
    }
  }
  void withdraw() noexcept override {
    // Open MPI cancels no sends: what is not done may be read until the process ends.
    if (!test(sends_).done) leave({});
    for (MPI_Request& r : receives_)
      if (r != MPI_REQUEST_NULL) MPI_Cancel(&r);
    // Of a message that is arriving already this waits for the end.
    MPI_Waitall(static_cast<int>(receives_.size()), receives_.data(), MPI_STATUSES_IGNORE);
    sends_.clear();
    receives_.clear();
  }
  void leave(std::string_view) noexcept override { MPI_Abort(MPI_COMM_WORLD, 1); }

 private:
  using Requests = std::vector<MPI_Request>;
  struct Tested {
    int code;
    bool done;
  };
  static Tested test(Requests& requests) noexcept {
    int done = 0;
    const int code =
        MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
    return {code, code == MPI_SUCCESS && done != 0};
  }
  static MPI_Request* next(Requests& requests) {
    requests.push_back(MPI_REQUEST_NULL);
    return &requests.back();
  }
  int rank_ = 0, size_ = 1;
  const int exceptions_ = std::uncaught_exceptions();
  Requests sends_, receives_;  // begun and not waited for
};

#endif

}  // namespace

std::unique_ptr<ProcessGroup> launched_group() {
  const auto launched = env("OMPI_COMM_WORLD_SIZE");
  // Of other launchers, whose processes would not find each other: PMI of MPICH and Slurm, PMIx of srun.
  if (!launched)
    for (const char* const size : {"PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
      if (const auto count = env(size); count && *count != "1")
        throw Error(ErrorCode::kUnsupported,
                    std::string(size) + " says that " + *count +
                        " processes were started, and not by Open MPI's mpirun: each "
                        "would train by itself into the same folder. Start them with "
                        "mpirun, or one of them only");
  if (!launched || *launched == "1") return single_process();
#ifdef BITNET_WITH_MPI
  return std::make_unique<MpiGroup>();
#else
  throw Error(ErrorCode::kUnsupported, "mpirun has started " + *launched +
                                           " processes, and this build has no MPI: each would train by "
                                           "itself. Configure it with BITNET_WITH_MPI=ON");
#endif
}

}  // namespace bitnet::training
