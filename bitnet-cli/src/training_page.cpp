// When the page is written, and what happens when it cannot be.
#include "training_page.hpp"

#include <exception>
#include <utility>

#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::cli {
namespace {

constexpr int kSeconds = 5;  // from one page to the next

}  // namespace

TrainingPage::TrainingPage(const std::filesystem::path& output,
                           std::function<void(const std::string&)> message)
    : path_(output / "curves.html"), message_(std::move(message)), curves_(output / "log.jsonl") {
  message_("curves: " + path_.string());
}

TrainingPage::~TrainingPage() { write(0); }

void TrainingPage::refresh() {
  if (failed_ || watch_.seconds() < next_) return;
  write(kSeconds);
  next_ = watch_.seconds() + kSeconds;
}

void TrainingPage::write(int refresh_seconds) noexcept {
  try {
    if (!std::filesystem::exists(path_.parent_path() / "log.jsonl")) return;  // the run did not begin
    curves_.update();
    write_file(path_, curves_.html(refresh_seconds));
  } catch (const std::exception& e) {
    if (!std::exchange(failed_, true)) message_(std::string("no curves: ") + e.what());
  }
}

}  // namespace bitnet::cli
