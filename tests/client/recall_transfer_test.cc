// recall export and recall import, as processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/client.h"
#include "fake_daemon.h"
#include "recall_fixture.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;

// ---- export and import

Json turn_record(uint64_t turn) {
  return {{"type", "turn"},
          {"turn", turn},
          {"role", "user"},
          {"content", "said \u00e9 " + std::to_string(turn)},
          {"time", "2026-01-02T03:04:05.000001Z"}};
}
Json header_record() {
  return {{"type", "memory"}, {"format", 1}, {"memory", "m"}, {"created", "c"}, {"updated", "u"}, {"next_turn", 3}};
}
Json end_record(uint64_t turns) {
  return {{"type", "end"}, {"turns", turns}, {"chunks", 0}};
}

// Exports a header, `turns` turns in pages of two, and the end unless it is told to leave that out.
FakeDaemon::Script exporting(uint64_t turns, bool with_end = true) {
  return [=](const std::string& line) {
    const Json request = Json::parse(line);
    if (request["method"] == "memories.get") return answer(line, memory(turns));
    const uint64_t from = request["params"].contains("cursor")
                              ? std::stoull(request["params"]["cursor"].get<std::string>().substr(2))
                              : 0;
    Json records = Json::array();
    if (from == 0) records.push_back(header_record());
    for (uint64_t i = from; i < std::min(from + 2, turns); ++i) records.push_back(turn_record(i));
    Json page{{"records", records}};
    if (from + 2 < turns) {
      page["next_cursor"] = "x:" + std::to_string(from + 2);
    } else if (with_end) {
      page["records"].push_back(end_record(turns));
    }
    return answer(line, page);
  };
}

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

TEST(Recall, ExportWritesOneRecordALineToStandardOutput) {
  const FakeDaemon daemon(exporting(3));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "export m");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output,
            R"({"type":"memory","format":1,"memory":"m","created":"c","updated":"u","next_turn":3})"
            "\n"
            R"({"type":"turn","turn":0,"role":"user","content":"said é 0","time":"2026-01-02T03:04:05.000001Z"})"
            "\n"
            R"({"type":"turn","turn":1,"role":"user","content":"said é 1","time":"2026-01-02T03:04:05.000001Z"})"
            "\n"
            R"({"type":"turn","turn":2,"role":"user","content":"said é 2","time":"2026-01-02T03:04:05.000001Z"})"
            "\n"
            R"({"type":"end","turns":3,"chunks":0})"
            "\n");
}

TEST(Recall, ExportToAFilePutsItInPlaceOnceItIsWhole) {
  const TempDir directory;
  const std::string path = directory.path() / "m.jsonl";
  const FakeDaemon daemon(exporting(3));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "export m '" + path + "' --encodings");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Exported m to " + path + ": 3 turns, "));
  EXPECT_THAT(contents(path), HasSubstr("\"end\""));
  EXPECT_FALSE(std::filesystem::exists(path + ".part"));
  EXPECT_EQ(std::filesystem::status(path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  EXPECT_EQ(sent(daemon, 1)["params"]["encodings"], true);
}

TEST(Recall, AnExportThatFailsLeavesTheOldFileAlone) {
  const TempDir directory;
  const std::string path = directory.path() / "m.jsonl";
  std::ofstream(path) << "old\n";
  const FakeDaemon endless(exporting(3, /*with_end=*/false));
  const Outcome outcome = shell("$RECALL " + at(endless) + "export m --force '" + path + "'");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("without its end record"));
  EXPECT_EQ(contents(path), "old\n");
  EXPECT_FALSE(std::filesystem::exists(path + ".part"));
  EXPECT_EQ(shell("$RECALL " + at(endless) + "export m >/dev/full").code, 1);
}

TEST(Recall, ExportReplacesAFileOnlyWhenItIsForced) {
  const TempDir directory;
  const std::string path = directory.path() / "m.jsonl";
  std::ofstream(path) << "old\n";
  const FakeDaemon daemon(exporting(3));
  for (const std::string& file : {path, (directory.path() / "link").string()}) {
    if (file != path) std::filesystem::create_symlink(path, file);
    const Outcome refused = shell("$RECALL " + at(daemon) + "export m '" + file + "'");
    EXPECT_EQ(refused.code, 2);
    EXPECT_EQ(refused.output, "recall: write " + file +
                                  ": there is such a file already; name another one, or give --force to replace it\n");
    EXPECT_EQ(contents(path), "old\n");
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
  }
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "export m --force '" + path + "'").code, 0);

  const Outcome other = shell("echo mine >'" + path + "2.part'; $RECALL " + at(daemon) + "export m '" + path + "2'");
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.output, HasSubstr("2.part: it is there already, of another export that goes on"));
  EXPECT_EQ(shell("cat '" + path + "2.part'").output, "mine\n");
  const Outcome dangling = shell("ln -s nothing '" + path + "3'; $RECALL " + at(daemon) + "export m '" + path + "3'");
  EXPECT_EQ(dangling.code, 2);
  EXPECT_THAT(dangling.output, HasSubstr("3: it is a link to a file that does not exist"));
  EXPECT_THAT(contents(path), HasSubstr("\"end\""));
  EXPECT_FALSE(std::filesystem::exists(path + ".part"));
}

TEST(Recall, ExportReplacesNoFileThatHasComeMeanwhile) {
  const TempDir directory;
  const std::string path = directory.path() / "m.jsonl";
  const FakeDaemon daemon([&path, script = exporting(3)](const std::string& line) {
    if (Json::parse(line)["params"].contains("cursor")) std::ofstream(path) << "another's\n";
    return script(line);
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "export m '" + path + "'");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("there is such a file already"));
  EXPECT_EQ(contents(path), "another's\n");
  EXPECT_FALSE(std::filesystem::exists(path + ".part"));
}

TEST(Recall, ExportWritesThroughPipesAndLinksInsteadOfReplacingThem) {
  const Json record{{"type", "end"}, {"turns", 0}, {"chunks", 0}};
  const FakeDaemon daemon([&](const std::string& line) {
    return answer(line, Json::parse(line)["method"] == "memories.get" ? memory(0) : Json{{"records", {record}}});
  });
  const TempDir directory;
  const std::string path = directory.path();
  const Outcome pipe = shell("mkfifo '" + path + "/p' && { timeout 5 cat '" + path + "/p' & } && $RECALL " +
                             at(daemon) + "export m '" + path + "/p' && wait && test -p '" + path + "/p'");
  EXPECT_EQ(pipe.code, 0) << pipe.output;
  EXPECT_THAT(pipe.output, HasSubstr(R"("type":"end")"));
  const Outcome link =
      shell("ln -s target '" + path + "/l' && : > '" + path + "/target' && $RECALL " + at(daemon) +
            "export m --force '" + path + "/l' && test -L '" + path + "/l' && cat '" + path + "/target'");
  EXPECT_EQ(link.code, 0) << link.output;
  EXPECT_THAT(link.output, HasSubstr(R"("type":"end")"));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "export m '" + path + "'").code, 2);
}

// Takes imports, and says that every record of a turn below `present` was there.
FakeDaemon::Script importing(uint64_t present = 0) {
  return [=](const std::string& line) {
    uint64_t known = 0;
    const Json params = Json::parse(line)["params"];
    for (const Json& record : params["records"]) known += record["type"] == "turn" && record["turn"] < present ? 1 : 0;
    Json result = memory(3);
    result["imported"] = params["records"].size() - known;
    result["present"] = known;
    return answer(line, result);
  };
}

std::string lines_of(const std::vector<Json>& records) {
  std::string out;
  for (const Json& record : records) out += record.dump() + "\n";
  return out;
}

class RecallImport : public ::testing::Test {
 protected:
  Outcome import(const FakeDaemon& daemon, const std::string& bytes, const std::string& options = "") {
    std::ofstream(path_, std::ios::binary) << bytes;
    return shell("$RECALL " + at(daemon) + "import '" + path_ + "' " + options);
  }

  TempDir directory_;
  std::string path_ = directory_.path() / "m.jsonl";
  std::vector<Json> records_{header_record(), turn_record(0), turn_record(1), turn_record(2), end_record(3)};
};

TEST_F(RecallImport, SendsTheRecordsAsTheyAreAndSumsUp) {
  const FakeDaemon daemon(importing(2));
  const Outcome outcome = import(daemon, lines_of(records_) + "\n");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output, "Imported 3 records of " + path_ +
                                " into m; 2 were there already. It has 3 turns and 1 chunk, 1 of them encoded.\n");
  ASSERT_EQ(daemon.lines().size(), 1u);
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"records", records_}}));
}

TEST_F(RecallImport, TakesAnotherNameAndStandardInput) {
  const FakeDaemon daemon(importing());
  EXPECT_EQ(import(daemon, lines_of(records_), "--memory other/m").code, 0);
  EXPECT_EQ(sent(daemon)["params"]["memory"], "other/m");
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "import - <'" + path_ + "'").code, 0);
  EXPECT_EQ(sent(daemon, 1)["params"]["memory"], "m");
}

TEST_F(RecallImport, CutsLongFilesIntoPagesBelowTheLineLimit) {
  const FakeDaemon daemon(importing());
  std::vector<Json> records{header_record()};
  for (uint64_t i = 0; i < 10; ++i) {
    records.push_back(turn_record(i));
    records.back()["content"] = std::string(content_bytes_max, 'x');
  }
  for (uint64_t i = 10; i < 2'010; ++i) records.push_back(turn_record(i));
  records.push_back(end_record(2'010));
  const Outcome outcome = import(daemon, lines_of(records));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  std::vector<Json> received;
  for (const std::string& line : daemon.lines()) {
    EXPECT_LT(line.size(), line_bytes_max);
    const Json request = Json::parse(line);
    for (const Json& record : request["params"]["records"]) received.push_back(record);
  }
  EXPECT_GE(daemon.lines().size(), 5u);
  EXPECT_TRUE(received == records);
}

TEST_F(RecallImport, AFileThatIsCutOffChangesNothing) {
  const FakeDaemon daemon(importing());
  const std::string whole = lines_of(records_);
  for (const size_t bytes : {size_t{0}, whole.find('\n') + 1, whole.size() - 3, whole.rfind("{\"chunks\"")}) {
    const Outcome outcome = import(daemon, whole.substr(0, bytes));
    EXPECT_EQ(outcome.code, 2) << bytes;
    EXPECT_THAT(outcome.output, HasSubstr("this is not a whole export")) << bytes;
  }
  EXPECT_TRUE(daemon.lines().empty());
}

TEST_F(RecallImport, APipeThatIsCutOffIsNoticedAtItsEnd) {
  const FakeDaemon daemon(importing());
  records_.pop_back();
  std::ofstream(path_) << lines_of(records_);
  const Outcome outcome = shell("cat '" + path_ + "' | $RECALL " + at(daemon) + "import -");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("standard input: this is not a whole export of recalld: it ends after line 4"));
}

TEST_F(RecallImport, AMissingLineInTheMiddleIsNoticed) {
  const FakeDaemon daemon(importing());
  records_.erase(records_.begin() + 2);
  const Outcome outcome = import(daemon, lines_of(records_));
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr(path_ + ":4: the file holds 2 turns, its end record says 3"));
  EXPECT_TRUE(daemon.lines().empty()) << "before anything is sent";
}

TEST_F(RecallImport, AMissingLineOfAPipeIsNoticedAtItsEndAndMakesTheMemoryUseless) {
  const FakeDaemon daemon(importing());
  std::vector<Json> records{header_record()};
  for (uint64_t i = 0; i < 1'500; ++i) records.push_back(turn_record(i));
  records.push_back(end_record(1'501));
  std::ofstream(path_) << lines_of(records);
  const Outcome outcome = shell("cat '" + path_ + "' | $RECALL " + at(daemon) + "import - --memory r");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("(1,000 records were imported; no later import fills what is missing: recall "
                                        "memories delete r and import a whole file)"));
}

TEST_F(RecallImport, WhatIsNoExportChangesNothingWhereverItIsWrong) {
  const FakeDaemon daemon(importing());
  std::vector<Json> records{header_record()};
  for (uint64_t i = 0; i < 1'500; ++i) records.push_back(turn_record(i));
  for (const Json& wrong : {header_record(), end_record(1'500), Json{{"turn", 1}}}) {
    std::vector<Json> with = records;
    with.push_back(wrong);
    with.push_back(end_record(1'500));
    EXPECT_THAT(import(daemon, lines_of(with)).output, HasSubstr(path_ + ":")) << wrong;
  }
  EXPECT_TRUE(daemon.lines().empty());
}

TEST_F(RecallImport, WrongLinesAreNamedByTheirNumber) {
  const FakeDaemon daemon(importing());
  const std::string end = end_record(0).dump() + "\n";
  const std::string header = header_record().dump() + "\n";
  EXPECT_THAT(import(daemon, header + "\nnot JSON\n" + end).output, HasSubstr(path_ + ":3: expected a record"));
  EXPECT_THAT(import(daemon, turn_record(0).dump() + "\n" + end).output,
              HasSubstr(path_ + ":1: expected the record of type memory"));
  EXPECT_THAT(import(daemon, header + header + end).output, HasSubstr(path_ + ":2: a second record of type memory"));
  EXPECT_THAT(import(daemon, header + end + end).output, HasSubstr(path_ + ":3: a record behind the end record"));
}

TEST_F(RecallImport, TheDaemonsComplaintIsNamedByItsLineToo) {
  const FakeDaemon daemon([](const std::string& line) {
    return refuse(line, "records[2].time: expected a time of RFC 3339", "invalid_request");
  });
  const Outcome outcome = import(daemon, "\n" + lines_of(records_));
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.output, "recall: " + path_ + ":4: time: expected a time of RFC 3339\n");

  const FakeDaemon other([](const std::string& line) { return refuse(line, "no space is left", "full"); });
  const Outcome full = import(other, lines_of(records_));
  EXPECT_EQ(full.code, 1);
  EXPECT_EQ(full.output, "recall: " + path_ + ", lines 1 to 5: no space is left\n");
}

}  // namespace
}  // namespace recalld::client
