#pragma once
// What tests of commands that write models ask of these: how well each predicts a text.
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "cli_fixture.hpp"

namespace bitnet::cli {

/// Models that the commands write, by what perplexity says of them.
class ScoredModels : public CliTest {
 protected:
  /// What `perplexity --json` says.
  nlohmann::json scores_of(const std::string& path) {
    const std::string text = file("text.txt", std::string(400, 'a') + std::string(400, 'b'));
    const auto o = call({"perplexity", "-m", path, "-f", text, "-c", "64", "--json"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return o.code == kOk ? nlohmann::json::parse(o.out) : nlohmann::json();
  }
  std::string nll_of(const std::string& path) { return scores_of(path)["nll"].dump(); }
  double perplexity_of(const std::string& path) {
    const nlohmann::json scores = scores_of(path);
    const double perplexity = std::exp(scores["nll"].get<double>() / scores["scored_tokens"].get<double>());
    EXPECT_DOUBLE_EQ(scores["perplexity"].get<double>(), perplexity);
    return perplexity;
  }
};

}  // namespace bitnet::cli
