// Folder, export, removal.
#include "training_checkpoint.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/training/checkpoint_model.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

fs::path temporary_folder() {
  std::string name = (fs::temp_directory_path() / "bitnet-checkpoint-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr)
    throw Error(ErrorCode::kIo, "cannot make a folder '" + name + "': " + std::strerror(errno));
  return name;
}

}  // namespace

CheckpointAsModel::CheckpointAsModel(const fs::path& checkpoint, const ExecutionContext& context) {
  const fs::path vocabulary = fs::absolute(checkpoint).parent_path() / "tokenizer.json";
  if (!fs::exists(vocabulary))
    throw Error(ErrorCode::kNotFound, "'" + checkpoint.string() +
                                          "' is a training checkpoint, which has no vocabulary: expected the "
                                          "tokenizer.json of its run beside it");
  const auto tokenizer = Tokenizer::load(vocabulary.parent_path());
  folder_ = temporary_folder();
  file_ = {folder_ / "model"};
  try {
    training::export_checkpoint(context, checkpoint, file_.path, *tokenizer);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
    throw;
  }
}

CheckpointAsModel::~CheckpointAsModel() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

}  // namespace bitnet::cli
