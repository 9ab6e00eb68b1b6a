#pragma once
// `bitnet` as a process of its own whose memory is measured and which may be killed, and models in shards,
// for the tests of quantising what is larger than memory.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/testing.hpp"

#ifndef BITNET_EXE
#error "BITNET_EXE is set by tests/CMakeLists.txt"
#endif

namespace bitnet::cli {

/// A running `bitnet`; what it says goes to a file.
class MeasuredProcess {
 public:
  MeasuredProcess(const std::vector<std::string>& arguments, const std::filesystem::path& log) {
    std::vector<char*> argv{const_cast<char*>(BITNET_EXE)};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    const std::string file = log.string();
    pid_ = fork();
    if (pid_ != 0) return;
    const int out = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), in = open("/dev/null", O_RDONLY);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    execv(BITNET_EXE, argv.data());
    _exit(127);
  }
  ~MeasuredProcess() {
    if (!waited_) {
      kill_now();
      wait();
    }
  }
  MeasuredProcess(const MeasuredProcess&) = delete;
  MeasuredProcess& operator=(const MeasuredProcess&) = delete;

  void kill_now() const { kill(pid_, SIGKILL); }
  bool has_ended() const {
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
  }
  /// The exit code, or minus the signal.
  int wait() {
    int status = 0;
    rusage usage{};
    EXPECT_EQ(wait4(pid_, &status, 0, &usage), pid_);
    waited_ = true;
    peak_ = static_cast<std::uint64_t>(usage.ru_maxrss) << 10;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  /// Largest resident memory, pages of mapped files included, in bytes; after wait().
  std::uint64_t peak() const { return peak_; }

 private:
  pid_t pid_ = -1;
  bool waited_ = false;
  std::uint64_t peak_ = 0;
};

/// Writes a dense model as a Hugging Face directory of shards, a layer in each, without a tokenizer.
inline void write_shards(const std::filesystem::path& model, const std::filesystem::path& directory) {
  const auto reader = quant::ModelReader::open(model, quant::FloatLinears::kKeep);
  const ModelConfig& config = reader->config();
  std::filesystem::create_directories(directory);
  nlohmann::json index;
  const std::vector<TensorId> ids = model_tensors(config);
  for (std::size_t begin = 0, end; begin < ids.size(); begin = end) {
    for (end = begin; end < ids.size() && ids[end].layer == ids[begin].layer;) ++end;
    const std::string file = "model-" + std::to_string(begin) + ".safetensors";
    std::vector<SafeTensorInfo> infos;
    for (std::size_t i = begin; i < end; ++i) {
      const DType type = reader->float_type(ids[i]).value();
      SafeTensorInfo info;
      info.name = hf_name(ids[i], config.family);
      info.dtype = type == DType::kF32   ? SafeDType::kF32
                   : type == DType::kF16 ? SafeDType::kF16
                                         : SafeDType::kBF16;
      const auto dims = tensor_shape(ids[i], config);
      info.shape.assign(dims.dims().begin(), dims.dims().end());
      index["weight_map"][info.name] = file;
      infos.push_back(std::move(info));
    }
    SafeTensorsWriter writer(directory / file, infos, {{"format", "pt"}});
    for (std::size_t i = begin; i < end; ++i) writer.write(infos[i - begin].name, reader->read(ids[i]).dense);
    writer.finish();
  }
  index["metadata"]["total_size"] = reader->file_bytes();
  write_file(directory / "model.safetensors.index.json", index.dump());
  write_file(directory / "config.json", config.to_json({}));
}

}  // namespace bitnet::cli
