#include "daemon/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A machine of the test's own: a home, an executable with a checkpoint beside it, and variables.
class OptionsTest : public ::testing::Test {
 protected:
  OptionsTest() {
    std::filesystem::create_directories(home() / "build/share/recalld-models/default");
    variables_["HOME"] = home().string();
  }

  std::filesystem::path home() const { return directory_.path(); }

  std::filesystem::path write(const std::filesystem::path& file, const std::string& text) const {
    std::filesystem::create_directories((home() / file).parent_path());
    std::ofstream(home() / file) << text;
    return home() / file;
  }

  Expected<CommandLine> read(std::vector<std::string> flags) const {
    std::vector<const char*> arguments{"recalld"};
    for (const std::string& flag : flags) arguments.push_back(flag.c_str());
    const auto variable = [this](const char* name) {
      const auto found = variables_.find(name);
      return found == variables_.end() ? std::string() : found->second;
    };
    return read_options(arguments, {.variable = variable, .executable = home() / executable_});
  }
  Options options(std::vector<std::string> flags) const {
    auto line = read(std::move(flags));
    EXPECT_TRUE(line) << line.error().message;
    return line ? line->options : Options{};
  }
  std::string mistake(std::vector<std::string> flags) const {
    const auto line = read(std::move(flags));
    if (line) return "no mistake";
    EXPECT_EQ(line.error().kind, ErrorKind::invalid_request);
    return line.error().message;
  }

  TempDir directory_;
  std::map<std::string, std::string> variables_;
  std::filesystem::path executable_ = "build/recalld";
};

TEST_F(OptionsTest, DefaultsLieInTheHomeDirectory) {
  const Options defaults = options({});
  EXPECT_EQ(defaults.data, home() / ".local/share/recalld");
  EXPECT_EQ(defaults.socket, home() / ".local/share/recalld/recalld.sock");
  EXPECT_EQ(defaults.model, home() / "build/share/recalld-models/default");
  EXPECT_EQ(defaults.device, Device::automatic);
  EXPECT_EQ(defaults.gpu_budget_bytes, 0u);
  EXPECT_EQ(defaults.memory_budget_bytes, memory_budget_bytes_default);
  EXPECT_EQ(defaults.threads, 0u);
  EXPECT_EQ(defaults.precision, Precision::automatic);
  EXPECT_EQ(defaults.log_level, "info");
}

TEST_F(OptionsTest, DefaultsFollowTheXdgDirectories) {
  variables_["XDG_DATA_HOME"] = "/xdg/data";
  variables_["XDG_RUNTIME_DIR"] = "/xdg/run";
  EXPECT_EQ(options({}).data, "/xdg/data/recalld");
  EXPECT_EQ(options({}).socket, "/xdg/run/recalld.sock");
}

TEST_F(OptionsTest, RelativeXdgDirectoriesAreIgnored) {
  variables_["XDG_DATA_HOME"] = "data";
  variables_["XDG_RUNTIME_DIR"] = "run";
  EXPECT_EQ(options({}).data, home() / ".local/share/recalld");
  EXPECT_EQ(options({}).socket, home() / ".local/share/recalld/recalld.sock");
}

TEST_F(OptionsTest, WithoutAHomeTheDataDirectoryMustBeGiven) {
  variables_.clear();
  EXPECT_THAT(mistake({}), HasSubstr("--data"));
  EXPECT_EQ(options({"--data", "/d"}).socket, "/d/recalld.sock");
}

TEST_F(OptionsTest, AnInstalledDaemonFindsItsCheckpointInItsPrefix) {
  std::filesystem::rename(home() / "build/share", home() / "share");
  EXPECT_EQ(options({}).model, home() / "share/recalld-models/default");
  std::filesystem::remove_all(home() / "share");
  EXPECT_THAT(mistake({}),
              AllOf(HasSubstr("no checkpoint in " + (home() / "build/share").string()), HasSubstr("--model")));
}

TEST_F(OptionsTest, CheckpointInstalledBelowTheHomeDirectoryLiesOutsideTheStore) {
  std::filesystem::create_directories(home() / ".local");
  std::filesystem::rename(home() / "build/share", home() / ".local/share");
  executable_ = ".local/bin/recalld";
  EXPECT_EQ(options({}).model, home() / ".local/share/recalld-models/default");
  EXPECT_EQ(options({}).data, home() / ".local/share/recalld");
}

TEST_F(OptionsTest, EveryFlagIsRead) {
  const Options all =
      options({"--data", "/d", "--socket", "/s", "--model=/m", "--device", "cuda", "--gpu-budget", "2GiB",
               "--memory-budget", "1GiB", "--threads", "3", "--precision", "f32", "--log-level", "debug"});
  EXPECT_EQ(all.data, "/d");
  EXPECT_EQ(all.socket, "/s");
  EXPECT_EQ(all.model, "/m");
  EXPECT_EQ(all.device, Device::cuda);
  EXPECT_EQ(all.gpu_budget_bytes, uint64_t{2} << 30);
  EXPECT_EQ(all.memory_budget_bytes, uint64_t{1} << 30);
  EXPECT_EQ(all.threads, 3u);
  EXPECT_EQ(all.precision, Precision::f32);
  EXPECT_EQ(all.log_level, "debug");
}

TEST_F(OptionsTest, RelativePathsOfFlagsCountFromWhereTheDaemonStarts) {
  EXPECT_EQ(options({"--data", "x/../d"}).data, std::filesystem::current_path() / "d");
}

TEST_F(OptionsTest, FlagsGoOverTheFileAndTheFileOverDefaults) {
  write(".config/recalld/config.toml", "data = \"/from/file\"\nlog-level = \"warn\"\nthreads = 2\n");
  const Options both = options({"--log-level", "error"});
  EXPECT_EQ(both.data, "/from/file");
  EXPECT_EQ(both.threads, 2u);
  EXPECT_EQ(both.log_level, "error");
}

TEST_F(OptionsTest, PathsInTheFileCountFromTheFile) {
  const auto file = write("etc/r.toml", "data = \"store\"\nmodel = \"/m\"\nmemory-budget = 33554432\n");
  const Options from_file = options({"--config", file.string()});
  EXPECT_EQ(from_file.data, home() / "etc/store");
  EXPECT_EQ(from_file.model, "/m");
  EXPECT_EQ(from_file.memory_budget_bytes, uint64_t{32} << 20);
}

TEST_F(OptionsTest, TheFileOfXdgConfigHomeIsTaken) {
  write("elsewhere/recalld/config.toml", "threads = 5\n");
  variables_["XDG_CONFIG_HOME"] = (home() / "elsewhere").string();
  EXPECT_EQ(options({}).threads, 5u);
}

TEST_F(OptionsTest, MistakesInTheFileNameTheLineAndTheKey) {
  const auto at_line = [&](const std::string& text) { return mistake({"--config", write("c.toml", text).string()}); };
  const std::string file = (home() / "c.toml").string();
  EXPECT_THAT(at_line("\nthreads = 1\ncolour = \"red\"\n"),
              AllOf(HasSubstr(file + ":3"), HasSubstr("unknown key \"colour\"; there are data, ")));
  EXPECT_THAT(at_line("data = 7\n"), HasSubstr(file + ":1: data: expected a string"));
  EXPECT_THAT(at_line("data = \"~/store\"\n"), HasSubstr(file + ":1: data: write the path out"));
  EXPECT_THAT(at_line("\nthreads = [1]\n"), HasSubstr(file + ":2: threads: expected a string or a whole number"));
  EXPECT_THAT(at_line("threads = \n"), HasSubstr(file + ":1: "));
  EXPECT_THAT(at_line("\ndevice = cuda\n"),
              AllOf(HasSubstr(file + ":2: "), HasSubstr("text in quotes, such as memory-budget = \"1GiB\"")));
}

TEST_F(OptionsTest, WrongValuesInTheFileNameItsLineAndThoseOfFlagsDoNot) {
  const std::string file = (home() / "c.toml").string();
  const auto at_line_two = [&](const std::string& line) {
    return mistake({"--config", write("c.toml", "# here\n" + line + "\n").string()});
  };
  EXPECT_EQ(at_line_two("threads = -1"), file + ":2: threads: expected a whole number from 0 to 1024, got \"-1\"");
  EXPECT_EQ(at_line_two("device = \"gpu\""), file + ":2: device: expected auto, cpu or cuda, got \"gpu\"");
  EXPECT_EQ(at_line_two("gpu-budget = 1"), file + ":2: gpu-budget: expected 0 or at least 64MiB, got \"1\"");
  EXPECT_EQ(at_line_two("precision = \"f16\""), file + ":2: precision: expected auto, f32 or bf16, got \"f16\"");
  EXPECT_EQ(at_line_two("log-level = \"loud\""),
            file + ":2: log-level: expected trace, debug, info, warn, error or off, got \"loud\"");
  EXPECT_EQ(at_line_two("data = \"\""), file + ":2: data: expected a path, got \"\"");
  EXPECT_THAT(at_line_two("memory-budget = \"lots\""),
              HasSubstr(file + ":2: memory-budget: expected bytes or a number with KiB"));
  write("c.toml", "threads = -1\n");
  EXPECT_EQ(mistake({"--config", file, "--threads", "two"}),
            "threads: expected a whole number from 0 to 1024, got \"two\"");
  EXPECT_EQ(options({"--config", file, "--threads", "2"}).threads, 2u) << "the flag stands for the file's";
}

TEST_F(OptionsTest, AFileThatWasAskedForMustBeThere) {
  const auto line = read({"--config", (home() / "none.toml").string()});
  ASSERT_FALSE(line);
  EXPECT_EQ(line.error().kind, ErrorKind::io);
  EXPECT_THAT(line.error().message, HasSubstr("none.toml: No such file"));
}

TEST_F(OptionsTest, AnEmptyFileIsAValidOne) {
  EXPECT_EQ(options({"--config", write("c.toml", "").string()}).threads, 0u);
}

TEST_F(OptionsTest, WrongValuesAreNamedWithWhatWasExpected) {
  EXPECT_EQ(mistake({"--device", "gpu"}), "device: expected auto, cpu or cuda, got \"gpu\"");
  EXPECT_EQ(mistake({"--precision", "f16"}), "precision: expected auto, f32 or bf16, got \"f16\"");
  EXPECT_EQ(mistake({"--log-level", "loud"}),
            "log-level: expected trace, debug, info, warn, error or off, got \"loud\"");
  EXPECT_EQ(mistake({"--threads", "two"}), "threads: expected a whole number from 0 to 1024, got \"two\"");
  EXPECT_EQ(mistake({"--threads", "1025"}), "threads: expected a whole number from 0 to 1024, got \"1025\"");
  EXPECT_EQ(mistake({"--data", ""}), "data: expected a path, got \"\"");
  EXPECT_THAT(mistake({"--memory-budget", "lots"}), HasSubstr("memory-budget: expected bytes or a number with KiB"));
  EXPECT_THAT(mistake({"--colour", "red"}), AllOf(HasSubstr("--colour"), HasSubstr("recalld --help")));
  EXPECT_THAT(mistake({"--data"}), HasSubstr("--data"));
}

TEST_F(OptionsTest, AMemoryBudgetBelowTheMinimumIsRefusedWithTheMinimum) {
  EXPECT_EQ(mistake({"--memory-budget", "16777215"}), "memory-budget: expected at least 16MiB, got \"16777215\"");
  EXPECT_EQ(options({"--memory-budget", "16MiB"}).memory_budget_bytes, memory_budget_bytes_min);
}

TEST_F(OptionsTest, TheDeviceMayStandInTheFileWithItsBudget) {
  const auto from = [&](const std::string& text) { return options({"--config", write("c.toml", text).string()}); };
  EXPECT_EQ(from("device = \"auto\"\n").device, Device::automatic);
  EXPECT_EQ(from("device = \"cpu\"\n").device, Device::cpu);
  EXPECT_EQ(from("device = \"cuda\"\ngpu-budget = \"1GiB\"\n").device, Device::cuda);
  EXPECT_EQ(from("device = \"cuda\"\ngpu-budget = \"1GiB\"\n").gpu_budget_bytes, uint64_t{1} << 30);
  EXPECT_EQ(from("gpu-budget = 0\n").gpu_budget_bytes, 0u);
}

TEST_F(OptionsTest, AGpuBudgetBelowTheMinimumIsRefusedWithTheMinimum) {
  EXPECT_EQ(mistake({"--gpu-budget", "67108863"}), "gpu-budget: expected 0 or at least 64MiB, got \"67108863\"");
  EXPECT_THAT(mistake({"--gpu-budget", "all"}), HasSubstr("gpu-budget: expected bytes or a number with KiB"));
  EXPECT_EQ(options({"--gpu-budget", "64MiB"}).gpu_budget_bytes, gpu_budget_bytes_min);
}

TEST_F(OptionsTest, HelpAndVersionArePrinted) {
  EXPECT_THAT(read({"--help"})->print, AllOf(HasSubstr("--memory-budget"), HasSubstr("Exit status")));
  EXPECT_THAT(read({"--version"})->print, ::testing::MatchesRegex("recalld [0-9.]+\n"));
}

TEST(ParseBytes, TakesBinaryUnits) {
  EXPECT_EQ(parse_bytes("0"), 0u);
  EXPECT_EQ(parse_bytes("67108864"), uint64_t{64} << 20);
  EXPECT_EQ(parse_bytes("3KiB"), 3072u);
  EXPECT_EQ(parse_bytes("2TiB"), uint64_t{2} << 40);
  for (const std::string_view wrong :
       {"", "MiB", "-1", "1 MiB", "1.5GiB", "64MB", "64mib", "18446744073709551616", "16777216TiB"})
    EXPECT_FALSE(parse_bytes(wrong)) << wrong;
}

}  // namespace
}  // namespace recalld
