#pragma once
// Reading yaml that nobody has checked. Build-only, as simd/ is: for the libraries that link yaml-cpp, never
// installed.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <sstream>
#include <string>
#include <vector>

namespace bitnet::yaml {

/// YAML::LoadAll(text), which never ends, and takes ever more memory, for text in which no document can begin
/// (", a": yaml-cpp 0.7 makes an empty document of it and does not get on). Throws YAML::Exception, for more
/// than 1000 documents, too.
inline std::vector<YAML::Node> load_all(const std::string& text) {
  struct Ignore : YAML::EventHandler {
    void OnDocumentStart(const YAML::Mark&) override {}
    void OnDocumentEnd() override {}
    void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
    void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
    void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
    void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                         YAML::EmitterStyle::value) override {}
    void OnSequenceEnd() override {}
    void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                    YAML::EmitterStyle::value) override {}
    void OnMapEnd() override {}
  };
  constexpr int kMost = 1000;
  std::istringstream in(text);
  YAML::Parser parser(in);
  Ignore ignore;
  for (int n = 0; parser.HandleNextDocument(ignore);)
    if (++n > kMost) throw YAML::ParserException(YAML::Mark::null_mark(), "no document can begin here");
  return YAML::LoadAll(text);
}

}  // namespace bitnet::yaml
