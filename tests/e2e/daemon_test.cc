// The real recalld and the real recall, from the outside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>

#include "client/append_stream.h"
#include "client/client.h"
#include "tests/support/daemon_process.h"
#include "tests/support/raw_client.h"
#include "tests/support/shell.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using client::Client;
using client::Json;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char fact[] = "The code for the lamp room is 60417.";
constexpr char question[] = "What is the code for the lamp room?";

client::Turn turn(std::string content) {
  client::Turn out;
  out.content = std::move(content);
  return out;
}

std::string log_entry(size_t number) {
  return "Entry " + std::to_string(number) + ": the tide turned at " + std::to_string(number % 12) + " and " +
         std::to_string(number % 5) + " boats came in with herring, rope and wet sails.";
}

client::AppendRequest harbour_log(const std::string& memory, size_t entries, size_t fact_at) {
  client::AppendRequest request;
  request.memory = memory;
  for (size_t i = 0; i < entries; ++i) request.turns.push_back(turn(i == fact_at ? fact : log_entry(i)));
  return request;
}

template <class T>
T must(Expected<T> value) {
  if (!value) throw std::runtime_error(value.error().message);
  return *std::move(value);
}

client::SearchReply search(Client& client, const std::string& memory, const std::string& query) {
  client::SearchRequest request;
  request.memory = memory;
  request.query = query;
  return must(client.search(request));
}

// All turns of a memory, page by page.
std::vector<client::StoredTurn> all_turns(Client& client, const std::string& memory) {
  std::vector<client::StoredTurn> turns;
  client::PageRequest request;
  request.memory = memory;
  while (true) {
    auto page = must(client.turns(request));
    std::move(page.turns.begin(), page.turns.end(), std::back_inserter(turns));
    if (!page.next_cursor) return turns;
    request.cursor = *page.next_cursor;
  }
}

void wait_until_encoded(Client& client) {
  for (int i = 0; i < 6000; ++i) {
    if (must(client.health()).waiting_chunks == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL() << "chunks still wait after a minute";
}

Outcome shell(const DaemonProcess& daemon, const std::string& command) {
  return recalld::shell("export RECALLD_SOCKET='" + daemon.socket().string() + "'; " + command);
}

class Daemon : public ::testing::Test {
 protected:
  const std::filesystem::path& directory() const { return directory_.path(); }

 private:
  TempDir directory_;
};

TEST_F(Daemon, TheClientAppendsSearchesAndInspects) {
  DaemonProcess daemon(directory(), with_starter());
  Client client = daemon.connect();
  client::AppendRequest request = harbour_log("harbour/log", 200, 40);
  request.wait_searchable = true;
  const auto appended = must(client.append(request));
  EXPECT_EQ(appended.first_turn, 0u);
  EXPECT_EQ(appended.last_turn, 199u);
  EXPECT_EQ(appended.searchable_through, 199u);

  const auto found = search(client, "harbour/log", question);
  ASSERT_EQ(found.results.size(), 8u);
  EXPECT_THAT(found.results[0].text, HasSubstr("60417"));
  EXPECT_EQ(found.searchable_through, 199u);

  const auto chunk = must(client.chunk("harbour/log", found.results[0].chunk));
  EXPECT_EQ(chunk.text, found.results[0].text);
  EXPECT_EQ(chunk.token_ids.size(), 64u);
  EXPECT_GT(chunk.kv_bytes, 0u);
  EXPECT_LE(chunk.first_turn, 40u);
  EXPECT_GE(chunk.last_turn, 40u);

  const auto memory = must(client.memory("harbour/log"));
  EXPECT_EQ(memory.turns, 200u);
  EXPECT_EQ(memory.tokens, appended.tokens);
  EXPECT_EQ(memory.encoded_chunks, appended.tokens / 64);
  EXPECT_EQ(must(client.memories()).memories.size(), 1u);
  const Json stats = must(client.stats());
  EXPECT_EQ(stats.at("turns"), 200);
  EXPECT_EQ(stats.at("searches"), 1);
  EXPECT_EQ(must(client.version()).protocol, 1u);

  ASSERT_TRUE(client.delete_memory("harbour/log"));
  EXPECT_EQ(client.memory("harbour/log").error().kind, ErrorKind::not_found);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

TEST_F(Daemon, TheCommandLineAppendsSearchesAndInspects) {
  DaemonProcess daemon(directory(), with_starter());
  daemon.connect();
  const Outcome appended =
      shell(daemon, "{ for i in $(seq 60); do echo \"The $i. crate holds rope and tar.\"; done; echo '" +
                        std::string(fact) + "'; } | $RECALL append notes --wait");
  EXPECT_EQ(appended.code, 0) << appended.output;
  const Outcome found = shell(daemon, "$RECALL search notes '" + std::string(question) + "' --json");
  ASSERT_EQ(found.code, 0) << found.output;
  EXPECT_THAT(Json::parse(found.output).at("results").at(0).at("text").get<std::string>(), HasSubstr("60417"));
  EXPECT_THAT(shell(daemon, "$RECALL search notes '" + std::string(question) + "'").output, HasSubstr("60417"));
  EXPECT_THAT(shell(daemon, "$RECALL memories").output, HasSubstr("notes"));
  EXPECT_THAT(shell(daemon, "$RECALL turns notes").output, AllOf(HasSubstr("The 1. crate"), HasSubstr(fact)));
  EXPECT_THAT(shell(daemon, "$RECALL chunks notes 0").output, HasSubstr("The 1. crate"));
  EXPECT_EQ(Json::parse(shell(daemon, "$RECALL stats --json").output).at("turns"), 61);
  EXPECT_EQ(shell(daemon, "$RECALL health").code, 0);
  const Outcome unknown = shell(daemon, "$RECALL search nowhere tide");
  EXPECT_EQ(unknown.code, 4);
  EXPECT_THAT(unknown.output, HasSubstr("nowhere"));
}

TEST_F(Daemon, AFactIsAskedForThroughTheClientAndTheCommandLine) {
  DaemonProcess daemon(directory(), with_starter());
  Client client = daemon.connect();
  client::AppendRequest request = harbour_log("harbour", 200, 40);
  request.wait_searchable = true;
  must(client.append(request));
  client::GenerateRequest ask;
  ask.memory = "harbour";
  ask.prompt = question;
  ask.stream = true;
  std::string told;
  const auto reply = must(client.generate(ask, [&told](std::string_view text) { told += text; }));
  EXPECT_EQ(reply.text, "60417");
  EXPECT_EQ(told, "60417");
  EXPECT_EQ(reply.finish, "newline");
  EXPECT_THAT(reply.chunks.at(0).text, HasSubstr("60417"));

  ask.max_tokens = 1024;
  ask.temperature = 2;
  const uint64_t endless = must(client.submit_generate(ask));
  EXPECT_TRUE(must(client.cancel(endless))) << "sent right behind it";
  EXPECT_EQ(must(client.wait(endless)).at("finish"), "cancelled");

  const Outcome asked = shell(daemon, "$RECALL ask harbour '" + std::string(question) + "' --sources");
  EXPECT_EQ(asked.code, 0) << asked.output;
  EXPECT_THAT(asked.output, AllOf(StartsWith("60417\n"), HasSubstr("lamp room is 60417")));
  EXPECT_GE(must(client.stats()).at("generations"), 3);
}

// Of the checkpoint that comes with recalld, nothing is known but that it reads and writes.
TEST_F(Daemon, WithoutAModelNamedTheShippedOneFindsAndWrites) {
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  const Json stats = must(client.stats());
  EXPECT_TRUE(std::filesystem::equivalent(stats.at("model_directory").get<std::string>(), default_checkpoint()));
  client::AppendRequest request = harbour_log("harbour", 100, 40);
  request.wait_searchable = true;
  const uint64_t chunks = must(client.append(request)).tokens / 64;
  client::SearchRequest all;
  all.memory = "harbour";
  all.query = question;
  all.limit = 128;
  const auto found = must(client.search(all));
  EXPECT_GE(found.results.size(), chunks);
  for (size_t i = 1; i < found.results.size(); ++i) EXPECT_GE(found.results[i - 1].score, found.results[i].score);
  EXPECT_TRUE(std::ranges::any_of(found.results, [](const auto& each) { return each.text.contains("60417"); }));

  client::GenerateRequest ask;
  ask.memory = "harbour";
  ask.prompt = question;
  ask.stream = true;
  std::string told;
  const auto reply = must(client.generate(ask, [&told](std::string_view text) { told += text; }));
  EXPECT_EQ(told, reply.text);
  EXPECT_GE(reply.tokens, 1u);
  EXPECT_FALSE(reply.chunks.empty());
}

TEST_F(Daemon, ACleanStopKeepsEverything) {
  client::SearchReply before;
  client::AppendReply first;
  client::AppendRequest request = harbour_log("m", 300, 17);
  request.operation_id = "load-1";
  {
    DaemonProcess daemon(directory());
    Client client = daemon.connect();
    first = must(client.append(request));
    wait_until_encoded(client);
    before = search(client, "m", question);
    EXPECT_EQ(daemon.stop(), 0) << daemon.log();
    EXPECT_FALSE(std::filesystem::exists(daemon.socket()));
  }
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  const auto after = search(client, "m", question);
  ASSERT_EQ(after.results.size(), before.results.size());
  for (size_t i = 0; i < after.results.size(); ++i) {
    EXPECT_EQ(after.results[i].chunk, before.results[i].chunk);
    EXPECT_EQ(after.results[i].score, before.results[i].score);
    EXPECT_EQ(after.results[i].text, before.results[i].text);
  }
  const auto again = must(client.append(request));  // the same operation changes nothing, across restarts too
  EXPECT_EQ(again.first_turn, first.first_turn);
  EXPECT_EQ(again.last_turn, first.last_turn);
  EXPECT_EQ(all_turns(client, "m").size(), 300u);
}

TEST_F(Daemon, CtrlCInAppendEndsTheWaitingAndKeepsTheTurns) {
  DaemonProcess daemon(directory(), {"--device", "cpu", "--threads", "1"});  // so that there is something to wait for
  Client client = daemon.connect();
  const std::string file = directory() / "crates.txt";
  // A shell starts what it puts into the background with Ctrl-C ignored.
  const Outcome outcome =
      shell(daemon, "seq -f 'The %.0f. crate holds rope, tar and wet sails.' 6000 >'" + file +
                        "'; env --default-signal=INT $RECALL append notes --wait '" + file +
                        "' & for i in $(seq 600); do $RECALL memories get notes --json 2>&1 | "
                        "grep -q '\"turns\":6000,' && break; sleep 0.1; done; sleep 0.5; kill -INT $!; wait $!");
  EXPECT_EQ(outcome.code, 130) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("interrupted: all 6,000 turns were acknowledged"));
  const auto memory = must(client.memory("notes"));
  EXPECT_EQ(memory.turns, 6000u);
  EXPECT_LT(memory.encoded_chunks, memory.chunks) << "there was nothing to wait for";
}

// Ends a daemon by `end` while much waits to be encoded, and expects the next one to go on from there.
void expect_backlog_to_outlive(const std::filesystem::path& directory, int (DaemonProcess::*end)(), int status) {
  constexpr size_t entries = 1500;
  uint64_t tokens = 0;
  {
    DaemonProcess daemon(directory, with_starter());
    Client client = daemon.connect();
    tokens = must(client.append(harbour_log("m", entries, 700))).tokens;
    EXPECT_EQ((daemon.*end)(), status) << daemon.log();
  }
  DaemonProcess daemon(directory, with_starter());
  Client client = daemon.connect();
  EXPECT_GT(must(client.health()).waiting_chunks, 0u);
  const auto turns = all_turns(client, "m");
  ASSERT_EQ(turns.size(), entries);
  for (size_t i = 0; i < entries; ++i) {
    ASSERT_EQ(turns[i].number, i);
    ASSERT_EQ(turns[i].turn.content, i == 700 ? fact : log_entry(i));
  }
  wait_until_encoded(client);
  EXPECT_EQ(must(client.memory("m")).encoded_chunks, tokens / 64);
  EXPECT_THAT(search(client, "m", question).results.at(0).text, HasSubstr("60417"));
}

TEST_F(Daemon, AKillWithWaitingEncodingsLosesNoAcknowledgedTurn) {
  expect_backlog_to_outlive(directory(), &DaemonProcess::kill, -SIGKILL);
}

TEST_F(Daemon, ACleanStopLeavesWaitingEncodingsToTheNextStart) {
  expect_backlog_to_outlive(directory(), &DaemonProcess::stop, 0);
}

TEST_F(Daemon, AKillAmidAppendsLeavesWholeRequestsInOrder) {
  constexpr size_t turns_a_request = 7;
  std::atomic<size_t> acknowledged = 0;
  {
    DaemonProcess daemon(directory());
    daemon.connect();
    std::thread writer([&] {
      Client client = daemon.connect();
      for (size_t i = 0;; ++i) {
        client::AppendRequest request;
        request.memory = "m";
        for (size_t j = 0; j < turns_a_request; ++j) request.turns.push_back(turn(log_entry(i * turns_a_request + j)));
        if (!client.append(request)) return;
        ++acknowledged;
      }
    });
    while (acknowledged < 40) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    daemon.kill();
    writer.join();
  }
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  const auto turns = all_turns(client, "m");
  EXPECT_EQ(turns.size() % turns_a_request, 0u);
  EXPECT_GE(turns.size(), acknowledged * turns_a_request);
  for (size_t i = 0; i < turns.size(); ++i) ASSERT_EQ(turns[i].turn.content, log_entry(i));
}

TEST_F(Daemon, ASecondDaemonOnTheSameDataIsRefused) {
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  const TempDir elsewhere;
  DaemonProcess second(elsewhere.path(), {"--data", (directory() / "data").string()});
  EXPECT_EQ(second.wait(), 1);
  EXPECT_THAT(second.log(), AllOf(StartsWith("recalld: "), HasSubstr((directory() / "data").string())));
  EXPECT_TRUE(client.health());
}

TEST_F(Daemon, ALiveSocketIsNotTakenOver) {
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  const TempDir elsewhere;
  DaemonProcess second(elsewhere.path(), {"--socket", daemon.socket().string()});
  EXPECT_EQ(second.wait(), 1);
  EXPECT_THAT(second.log(), HasSubstr("another daemon listens on " + daemon.socket().string()));
  EXPECT_FALSE(std::filesystem::exists(elsewhere.path() / "data")) << "a store was made for nothing";
  daemon.connect();
}

TEST_F(Daemon, TheSocketOfAKilledDaemonIsTakenOverWithMode0600) {
  {
    DaemonProcess daemon(directory());
    daemon.connect();
    daemon.kill();
    ASSERT_TRUE(std::filesystem::exists(daemon.socket()));
  }
  DaemonProcess daemon(directory());
  daemon.connect();
  struct stat status {};
  ASSERT_EQ(::stat(daemon.socket().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(Daemon, WhatItStoresIsItsOwnersAlone) {
  const mode_t umask_before = ::umask(0);
  DaemonProcess daemon(directory());
  ::umask(umask_before);
  Client client = daemon.connect();
  must(client.append(harbour_log("m", 60, 3)));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
  using std::filesystem::perms;
  const auto expect_private = [](const std::filesystem::path& path) {
    EXPECT_EQ(std::filesystem::status(path).permissions() & (perms::group_all | perms::others_all), perms::none)
        << path;
  };
  expect_private(directory() / "data");
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory() / "data"))
    expect_private(entry.path());
}

TEST_F(Daemon, WrongUsageEndsWithStatus2AndSaysWhy) {
  DaemonProcess unknown(directory(), {"--colour", "red"});
  EXPECT_EQ(unknown.wait(), 2);
  EXPECT_THAT(unknown.log(), HasSubstr("--colour"));
  DaemonProcess small(directory(), {"--memory-budget", "1MiB"});
  EXPECT_EQ(small.wait(), 2);
  EXPECT_THAT(small.log(), HasSubstr("memory-budget: expected at least 16MiB"));
  const std::string file = directory() / "config.toml";
  std::ofstream(file) << "# for tests\nthreads = \"many\"\n";
  DaemonProcess from_file(directory(), {"--config", file});
  EXPECT_EQ(from_file.wait(), 2);
  EXPECT_THAT(from_file.log(), HasSubstr(file + ":2: threads: expected a whole number from 0 to 1024, got \"many\""));
  DaemonProcess no_model(directory(), {"--model", directory().string()});
  EXPECT_EQ(no_model.wait(), 1);
  EXPECT_THAT(no_model.log(), HasSubstr("config.json"));
}

bool driver_is_loaded() {
  return std::filesystem::exists("/dev/nvidiactl");
}

TEST_F(Daemon, WithoutAGpuCudaEndsWithStatus1AndSaysWhy) {
  if (driver_is_loaded()) GTEST_SKIP() << "an NVIDIA driver is loaded";
  DaemonProcess daemon(directory(), {"--device", "cuda"});
  EXPECT_EQ(daemon.wait(), 1);
  EXPECT_THAT(daemon.log(), AllOf(HasSubstr("recalld: open the GPU: " RECALLD_WITHOUT_GPU), HasSubstr("--device cpu")));
  EXPECT_FALSE(std::filesystem::exists(directory() / "data"));
}

TEST_F(Daemon, ALibraryThatIsNotThereThoughNamedStopsCudaAndNotAuto) {
  const std::string library = directory() / "none.so";
  setenv("RECALLD_CUDA_LIBRARY", library.c_str(), 1);
  DaemonProcess cuda(directory(), {"--device", "cuda"});
  EXPECT_EQ(cuda.wait(), 1);
  EXPECT_THAT(cuda.log(), HasSubstr("RECALLD_CUDA_LIBRARY names " + library));
  DaemonProcess automatic(directory(), {"--device", "auto"});
  unsetenv("RECALLD_CUDA_LIBRARY");
  Client client = automatic.connect();
  EXPECT_EQ(must(client.stats()).at("device"), "cpu");
  EXPECT_THAT(automatic.log(),
              AllOf(HasSubstr("warning the CPU computes: open the GPU: RECALLD_CUDA_LIBRARY names " + library),
                    HasSubstr(", device cpu\n")));
}

TEST_F(Daemon, ItIsReadyWithTheDeviceThatItComputesOn) {
  for (const std::string flag : {"auto", "cpu"}) {
    DaemonProcess daemon(directory(), {"--device", flag});
    Client client = daemon.connect();
    const std::string device = must(client.stats()).at("device");
    if (flag == "cpu" || !driver_is_loaded()) {
      EXPECT_EQ(device, "cpu");
    }
    EXPECT_THAT(daemon.log(), HasSubstr(", device " + device));
    EXPECT_EQ(daemon.stop(), 0);
  }
}

TEST_F(Daemon, TheSmallestMemoryBudgetIsEnough) {
  DaemonProcess daemon(directory(), with_starter({"--memory-budget", "16MiB"}));
  Client client = daemon.connect();
  client::AppendRequest request = harbour_log("m", 100, 3);
  request.wait_searchable = true;
  must(client.append(request));
  const client::SearchReply reply = search(client, "m", question);
  ASSERT_EQ(reply.results.size(), 8u);
  EXPECT_THAT(reply.results.front().text, HasSubstr("60417"));
}

// Sends bad input, expects an error that says `reason`, and a good answer to a good request on the same connection.
class BadInput : public Daemon {
 protected:
  void SetUp() override {
    Client setup = daemon_.connect();
    must(setup.append(harbour_log("m", 3, 1)));
  }
  void TearDown() override {
    Client client = daemon_.connect();
    EXPECT_EQ(must(client.memories()).memories.size(), 1u) << "bad input was stored";
    EXPECT_EQ(must(client.memory("m")).turns, 3u);
  }

  void refused(std::string_view sent, std::string_view reason) {
    SCOPED_TRACE(std::string(sent.substr(0, 200)));
    RawClient client(daemon_.socket());
    ASSERT_TRUE(client.send(sent) && client.send("\n{\"jsonrpc\":\"2.0\",\"id\":\"good\",\"method\":\"version\"}\n"));
    // Replies leave as they are ready: the order is the daemon's.
    Json bad = Json::parse(client.line().value_or("null"));
    Json good = Json::parse(client.line().value_or("null"));
    if (bad.is_object() && bad.value("id", Json()) == "good") std::swap(bad, good);
    ASSERT_TRUE(good.is_object() && good.contains("result")) << good;
    ASSERT_TRUE(bad.is_object() && bad.contains("error")) << bad;
    EXPECT_THAT(bad["error"]["message"].get<std::string>(), HasSubstr(reason));
    EXPECT_THAT(bad["error"]["data"]["kind"].get<std::string>(), AnyOf("invalid_request", "not_found"));
  }
  static std::string call(std::string_view method, std::string_view params) {
    return R"({"jsonrpc":"2.0","id":1,"method":")" + std::string(method) + R"(","params":)" + std::string(params) + "}";
  }
  static std::string append(const std::string& memory, const std::string& content) {
    return call("append", Json{{"memory", memory}, {"turns", {{{"role", "user"}, {"content", content}}}}}.dump());
  }

  DaemonProcess daemon_{directory()};
};

TEST_F(BadInput, WhatIsNotJson) {
  refused("hello", "the line is not JSON in UTF-8");
  refused("{\"jsonrpc\":\"2.0\"", "the line is not JSON in UTF-8");
}
TEST_F(BadInput, InvalidUtf8) {
  refused(call("append", "{\"memory\":\"m\",\"turns\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}"), "UTF-8");
}
TEST_F(BadInput, AnUnknownMethod) {
  refused(call("remember", R"({"memory":"m","turns":[0]})"), "method: there is no \"remember\"");
}
TEST_F(BadInput, AMissingField) {
  refused(call("append", R"({"memory":"m"})"), "turns: this argument is missing");
  refused(call("append", R"({"memory":"m","turns":[{"role":"user"}]})"), "turns[0].content: this argument is missing");
  refused(call("search", R"({"memory":"m"})"), "query: this argument is missing");
}
TEST_F(BadInput, AWrongField) {
  refused(call("append", R"({"memory":"m","turns":["x"]})"), "turns[0]: expected an object");
  refused(call("search", R"({"memory":"m","query":"x","limit":"three"})"), "limit: expected an integer");
  refused(call("search", R"({"memory":"m","query":"x","colour":"red"})"), "colour: unknown argument");
}
TEST_F(BadInput, AnUnknownMemory) {
  refused(call("search", R"({"memory":"nobody","query":"x"})"), "nobody");
  refused(call("turns.list", R"({"memory":"nobody"})"), "nobody");
  refused(call("memories.delete", R"({"memory":"nobody"})"), "nobody");
}
TEST_F(BadInput, AnUnknownChunk) {
  refused(call("chunks.get", R"({"memory":"m","chunk":99})"), "chunk 99");
}
TEST_F(BadInput, ANameWithDots) {
  refused(append("a/../b", "x"), "memory: expected a name");
}
TEST_F(BadInput, AnEmptyTurn) {
  refused(append("n", ""), "turns[0].content: expected a string of 1 to 1048576 bytes");
}
TEST_F(BadInput, ATurnOverOneMebibyte) {
  refused(append("n", std::string((1 << 20) + 1, 'x')), "turns[0].content: expected a string of 1 to 1048576 bytes");
}
TEST_F(BadInput, ALineOverTheBound) {
  refused(append("n", std::string(8 << 20, 'x')), "the line is longer than 8388608 bytes");
}
TEST_F(BadInput, ALineOf100Megabytes) {
  refused(std::string(100'000'000, 'x'), "the line is longer than 8388608 bytes");
}
TEST_F(BadInput, OneWrongTurnAmongGoodOnes) {
  refused(call("append", R"({"memory":"m","turns":[{"role":"user","content":"good"},{"role":"bot","content":"bad"}]})"),
          "turns[1].role");
}
TEST_F(BadInput, AClientThatHangsUpInTheMiddle) {
  for (int i = 0; i < 20; ++i) {
    RawClient client(daemon_.socket());
    ASSERT_TRUE(client.send(call("turns.list", R"({"memory":"m"})") + "\n" + append("n", "half").substr(0, 60)));
  }
}

TEST_F(Daemon, NulBytesAndSpecialTokenStringsComeBackIntact) {
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  const std::vector<std::string> contents = {
      std::string("a\0b\0", 4),
      std::string(1, '\0'),
      "<|recall|> <s> </s> <unk> <|endoftext|> <0x00>",
      "  spaces  and\ttabs\r\nand\n\nlines\n",
      "\xe2\x98\x83 \xf0\x9f\x9a\xa2 \xe6\xb8\xaf \xd9\x85\xd8\xb1\xd9\x81\xd8\xa3 e\xcc\x81 \xef\xbf\xbd \xe2\x96\x81",
      std::string(20'000, 'x'),
  };
  client::AppendRequest request;
  request.memory = "m";
  std::string stream;
  for (const std::string& content : contents) {
    request.turns.push_back(turn(content));
    stream += "User: " + content + "\n";
  }
  request.wait_searchable = true;
  const auto appended = must(client.append(request));
  const auto turns = all_turns(client, "m");
  ASSERT_EQ(turns.size(), contents.size());
  for (size_t i = 0; i < contents.size(); ++i) EXPECT_EQ(turns[i].turn.content, contents[i]);

  // The chunks' texts, one after the other, are the stream itself, up to the open chunk.
  std::string joined;
  client::PageRequest page;
  page.memory = "m";
  for (bool more = true; more;) {
    const auto reply = must(client.chunks(page));
    for (const auto& chunk : reply.chunks) joined += chunk.text;
    more = reply.next_cursor.has_value();
    page.cursor = reply.next_cursor.value_or("");
  }
  EXPECT_GT(joined.size(), 20'000u);
  EXPECT_TRUE(stream.starts_with(joined));
  EXPECT_EQ(must(client.memory("m")).encoded_chunks, appended.tokens / 64);
}

TEST_F(Daemon, ATurnOfExactlyOneMebibyteIsTaken) {
  DaemonProcess daemon(directory());
  Client client = daemon.connect();
  client::AppendRequest request;
  request.memory = "m";
  request.turns = {turn(std::string(client::content_bytes_max, 'x'))};
  must(client.append(request));
  EXPECT_EQ(all_turns(client, "m").at(0).turn.content, request.turns[0].content);
}

TEST_F(Daemon, ManyClientsAtOnceKeepTheirOrder) {
  DaemonProcess daemon(directory());
  daemon.connect();
  constexpr size_t clients = 12, appends = 20;
  std::atomic<size_t> failures = 0;
  std::vector<std::thread> threads;
  for (size_t id = 0; id < clients; ++id)
    threads.emplace_back([&, id] {
      Client client = daemon.connect();
      for (size_t i = 0; i < appends; ++i) {
        client::AppendRequest request;
        request.memory = "shared/" + std::to_string(id % 3);
        request.turns = {turn(std::to_string(id) + " says " + std::to_string(i))};
        failures += !client.append(request);
        client::SearchRequest query;
        query.memory = request.memory;
        query.query = "who says " + std::to_string(i) + "?";
        failures += !client.search(query);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0u);
  Client client = daemon.connect();
  for (size_t memory = 0; memory < 3; ++memory) {
    std::vector<size_t> next(clients, 0);
    const auto turns = all_turns(client, "shared/" + std::to_string(memory));
    EXPECT_EQ(turns.size(), clients / 3 * appends);
    for (const auto& stored : turns) {
      const size_t id = std::stoul(stored.turn.content);
      EXPECT_EQ(stored.turn.content, std::to_string(id) + " says " + std::to_string(next[id]++));
    }
  }
}

}  // namespace
}  // namespace recalld
