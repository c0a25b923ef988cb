#include "client/turn_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "fake_daemon.h"

namespace recalld::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TurnReaderTest : public ::testing::Test {
 protected:
  // Every turn of a file with these bytes, or the first error.
  Expected<std::vector<TurnReader::Item>> read(std::string_view bytes, TurnReader::Options options = {}) {
    std::ofstream(path_, std::ios::binary) << bytes;
    RECALLD_TRY(TurnReader reader, TurnReader::open(path_, std::move(options)));
    std::vector<TurnReader::Item> items;
    for (;;) {
      RECALLD_TRY(auto item, reader.next());
      if (!item) return items;
      items.push_back(*std::move(item));
    }
  }

  std::vector<std::string> contents(std::string_view bytes, TurnReader::Options options = {}) {
    const auto items = read(bytes, std::move(options));
    std::vector<std::string> out;
    if (!items) return {"error: " + items.error().message};
    for (const auto& item : *items) out.push_back(item.turn.content);
    return out;
  }

  std::string error(std::string_view bytes, TurnReader::Options options = {}) {
    const auto items = read(bytes, std::move(options));
    return items ? "no error" : items.error().message;
  }

  TempDir directory_;
  std::string path_ = directory_.path() / "chat.txt";
};

TEST_F(TurnReaderTest, TextGivesOneTurnANonEmptyLine) {
  EXPECT_THAT(contents("one\n\n  \ntwo words\r\n  three"), ElementsAre("one", "two words", "  three"));
}

TEST_F(TurnReaderTest, EmptyFileHoldsNoTurns) {
  EXPECT_THAT(contents(""), ElementsAre());
}

TEST_F(TurnReaderTest, ByteOrderMarkIsNoText) {
  EXPECT_THAT(contents("\xef\xbb\xbfone\n"), ElementsAre("one"));
}

TEST_F(TurnReaderTest, NulBytesAreText) {
  EXPECT_THAT(contents(std::string_view("a\0b\n", 4)), ElementsAre(std::string("a\0b", 3)));
}

TEST_F(TurnReaderTest, OriginCountsLinesAndBytes) {
  const auto items = read("one\n\ntwo");
  ASSERT_TRUE(items);
  EXPECT_EQ(items->at(0).origin.line, 1u);
  EXPECT_EQ(items->at(0).origin.end_byte, 4u);
  EXPECT_EQ(items->at(1).origin.line, 3u);
  EXPECT_EQ(items->at(1).origin.end_byte, 8u);
}

TEST_F(TurnReaderTest, JsonLinesAreRecognisedAndKeepTheirFields) {
  const auto items =
      read(R"({"role":"assistant","content":"hi","name":"Ada","time":"2026-01-02T03:04:05Z","metadata":{"n":1}})"
           "\n{\"content\":\"default\"}\n",
           {.role = "tool", .name = "Bo"});
  ASSERT_TRUE(items) << items.error().message;
  const Turn& first = items->at(0).turn;
  EXPECT_EQ(first.role, "assistant");
  EXPECT_EQ(first.name, "Ada");
  EXPECT_EQ(first.time, "2026-01-02T03:04:05Z");
  EXPECT_EQ(first.metadata, (Json{{"n", 1}}));
  const Turn& second = items->at(1).turn;
  EXPECT_EQ(second.role, "tool");
  EXPECT_EQ(second.name, "Bo");
}

TEST_F(TurnReaderTest, TextFormatTakesJsonAsItStands) {
  EXPECT_THAT(contents("{\"content\":\"hi\"}\n", {.format = InputFormat::text}), ElementsAre("{\"content\":\"hi\"}"));
}

TEST_F(TurnReaderTest, TextThatBeginsWithABraceIsText) {
  EXPECT_THAT(contents("{not json\n"), ElementsAre("{not json"));
}

TEST_F(TurnReaderTest, ABrokenObjectIsNotTakenForText) {
  for (const std::string line : {"{\"content\":\"x\"", "{\"content\":\"x\"}}", "{\"content\": x}"}) {
    EXPECT_THAT(error(line + "\n"), HasSubstr("chat.txt:1: this looks like a JSON object that is broken")) << line;
    EXPECT_THAT(contents(line + "\n", {.format = InputFormat::text}), ElementsAre(line));
  }
}

TEST_F(TurnReaderTest, JsonDocumentIsNotTakenForText) {
  for (const std::string document :
       {"[{\"content\":\"x\"}]\n", "[\n {\"content\":\"x\"}\n]\n", "{\n \"content\":\"x\"\n}\n"}) {
    EXPECT_THAT(error(document), HasSubstr("chat.txt:1: this looks like one JSON document")) << document;
    EXPECT_EQ(error(document, {.format = InputFormat::text}), "no error") << document;
  }
  EXPECT_THAT(contents("[10:15] good morning\n"), ElementsAre("[10:15] good morning"));
}

TEST_F(TurnReaderTest, ErrorsNameFileLineAndField) {
  EXPECT_THAT(error("good\nbad \xff byte\n"), HasSubstr("chat.txt:2: byte 5"));
  const std::string good = "{\"content\":\"x\"}\n";
  EXPECT_THAT(error(good + "plain\n"), HasSubstr("chat.txt:2: expected a JSON object"));
  EXPECT_THAT(error(good + "{\"role\":\"user\"}\n"), HasSubstr("chat.txt:2: content"));
  EXPECT_THAT(error(good + "{\"content\":7}\n"), HasSubstr("chat.txt:2: content: expected a string, got number"));
  EXPECT_THAT(error(good + "{\"content\":\"x\",\"id\":1}\n"), HasSubstr("chat.txt:2: unknown key 'id'"));
  EXPECT_THAT(error(good + "{\"content\":\"x\",\"role\":\"bot\"}\n"), HasSubstr("chat.txt:2: role"));
  EXPECT_THAT(error(good + "{\"content\":\"x\",\"time\":\"noon\"}\n"), HasSubstr("chat.txt:2: time"));
  EXPECT_THAT(error(good + "{\"content\":\"x\",\"metadata\":[1]}\n"), HasSubstr("chat.txt:2: metadata"));
  EXPECT_THAT(error(good + "{\"content\":\"x\",\"metadata\":{\"a\":{}}}\n"), HasSubstr("chat.txt:2: metadata.a"));
}

TEST_F(TurnReaderTest, JsonLinesWithoutContentAreSkippedAndCounted) {
  std::ofstream(path_, std::ios::binary) << "{\"content\":\"one\"}\n\n{\"role\":\"assistant\",\"content\":\"\"}\n"
                                            "{\"content\":null}\n{\"content\":\"two\"}\n";
  auto reader = TurnReader::open(path_, {});
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->next().value()->turn.content, "one");
  EXPECT_EQ(reader->skipped(), 0u);
  const auto second = reader->next();
  EXPECT_EQ(second.value()->turn.content, "two");
  EXPECT_EQ(second.value()->origin.line, 5u);
  EXPECT_FALSE(reader->next().value());
  EXPECT_EQ(reader->skipped(), 2u);
  EXPECT_EQ(reader->first_skipped_line(), 3u);
}

TEST_F(TurnReaderTest, OtherMistakesOfALineWithoutContentStillStop) {
  EXPECT_THAT(error("{\"content\":\"\",\"id\":1}\n"), HasSubstr("chat.txt:1: unknown key 'id'"));
  EXPECT_THAT(error("{\"content\":\"x\"}\n{\"name\":\"Ana\"}\n"), HasSubstr("chat.txt:2: content"));
}

TEST_F(TurnReaderTest, AKeyThatALineHasTwiceIsRefused) {
  EXPECT_THAT(error("{\"role\":\"user\",\"content\":\"a\",\"content\":\"b\"}\n"),
              HasSubstr("chat.txt:1: the key 'content' appears twice in one object"));
  EXPECT_THAT(error("{\"content\":\"x\"}\n{\"content\":\"a\",\"metadata\":{\"n\":1,\"n\":2}}\n"),
              HasSubstr("chat.txt:2: the key 'n' appears twice in one object"));
  EXPECT_EQ(error("{\"name\":\"a\",\"content\":\"b\",\"metadata\":{\"name\":1,\"content\":2}}\n"), "no error");
}

TEST_F(TurnReaderTest, ASourceThatIsStoppedHasEndedBehindWhatHasCome) {
  std::string line = std::string(1000, 'x') + "\n", lines;
  for (int i = 0; i < 200; ++i) lines += line;
  std::ofstream(path_) << lines;
  bool stop = false;
  auto reader = TurnReader::open(path_, {.lines = {.stop = [&stop] { return stop; }}});
  ASSERT_TRUE(reader);
  EXPECT_TRUE(reader->next().value());
  stop = true;
  uint64_t end_byte = 0;
  for (auto item = reader->next(); item && *item; item = reader->next()) end_byte = (*item)->origin.end_byte;
  EXPECT_GT(end_byte, LineReader::read_bytes) << "what was read, and what can be read at once";
  EXPECT_LE(end_byte, 2 * LineReader::read_bytes);
  EXPECT_FALSE(reader->next().value());
}

TEST_F(TurnReaderTest, TurnOverOneMebibyteIsRefusedWithItsSize) {
  EXPECT_THAT(contents(std::string(content_bytes_max, 'x')), ElementsAre(std::string(content_bytes_max, 'x')));
  EXPECT_THAT(error("a\n" + std::string(content_bytes_max + 1, 'x') + "\n"),
              HasSubstr("chat.txt:2: content: the turn has 1,048,577"));
}

TEST_F(TurnReaderTest, LineBeyondTheBoundIsRefusedWithoutBeingHeld) {
  EXPECT_THAT(error(std::string(line_bytes_max + 100'000, 'x')), HasSubstr("chat.txt:1: the line has more than"));
}

TEST_F(TurnReaderTest, MissingFileAndDirectoryAreNamed) {
  const auto missing = TurnReader::open(directory_.path() / "none.txt", {});
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().message, HasSubstr("none.txt"));
  const auto folder = TurnReader::open(directory_.path(), {});
  ASSERT_FALSE(folder);
  EXPECT_THAT(folder.error().message, HasSubstr("directory"));
}

}  // namespace
}  // namespace recalld::client
