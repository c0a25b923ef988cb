#include "model/tokenizer.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "model/config.h"
#include "tests/support/checkpoints.h"

namespace recalld {
namespace {

const std::string model_file = (starter_checkpoint() / "tokenizer.model").string();

const Tokenizer& tokenizer() {
  static const Tokenizer shared = [] {
    auto opened = Tokenizer::open(model_file, 3, 6);
    EXPECT_TRUE(opened) << opened.error().message;
    return *std::move(opened);
  }();
  return shared;
}

const sentencepiece::SentencePieceProcessor& library() {
  static const auto processor = [] {
    auto loaded = std::make_unique<sentencepiece::SentencePieceProcessor>();
    EXPECT_TRUE(loaded->Load(model_file).ok());
    return loaded;
  }();
  return *processor;
}

std::vector<uint32_t> library_ids(std::string_view text) {
  std::vector<int> ids;
  EXPECT_TRUE(library().Encode(text, &ids).ok());
  return {ids.begin(), ids.end()};
}

void expect_ends_cut_whole_characters(std::string_view text, const Tokens& tokens) {
  ASSERT_EQ(tokens.ids.size(), tokens.ends.size());
  uint32_t before = 0;
  for (const uint32_t end : tokens.ends) {
    ASSERT_GE(end, before);
    ASSERT_LE(end, text.size());
    ASSERT_TRUE(end == text.size() || (static_cast<uint8_t>(text[end]) & 0xc0) != 0x80) << "cut inside a character";
    before = end;
  }
  if (!text.empty()) {
    ASSERT_EQ(before, text.size());
  }
}

// Words, spaces, digits, marks, characters of one to four bytes and rare ones; the newline among them.
std::string random_text(std::mt19937& random, size_t units) {
  static const std::vector<std::string> alphabet = {"the",
                                                    "memory",
                                                    "re",
                                                    "call",
                                                    "ing",
                                                    "x",
                                                    "qz",
                                                    "A",
                                                    "Tool",
                                                    " ",
                                                    " ",
                                                    " ",
                                                    " ",
                                                    "  ",
                                                    "\n",
                                                    "\t",
                                                    ".",
                                                    ",",
                                                    "'s",
                                                    "1",
                                                    "42",
                                                    "007",
                                                    "-",
                                                    "<",
                                                    "|",
                                                    ">",
                                                    "_",
                                                    "\xc3\xa9",
                                                    "\xc3\x9f",
                                                    "\xe2\x80\x94",
                                                    "\xe2\x96\x81",
                                                    "\xe4\xbd\xa0",
                                                    "\xf0\x9f\x99\x82",
                                                    "\xcc\x8a",
                                                    "\xe2\x80\x8d",
                                                    "\x7f",
                                                    "\x01"};
  std::string text;
  for (size_t i = 0; i < units; ++i) text += alphabet[random() % alphabet.size()];
  return text;
}

// What the library alone makes of a text, a special string in it broken after its first byte: in one piece, or behind a
// newline where it goes on in the middle of a word.
Tokens library_tokens(const sentencepiece::SentencePieceProcessor& processor, std::string_view text) {
  std::vector<size_t> cuts = {0, text.size()};
  for (const std::string_view special : {"<|recall|>", "<|user|>", "<|assistant|>"})
    for (size_t at = text.find(special); at != text.npos; at = text.find(special, at + 1)) cuts.push_back(at + 1);
  std::ranges::sort(cuts);
  Tokens out;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const std::string_view part = text.substr(cuts[i], cuts[i + 1] - cuts[i]);
    const auto encoded = processor.EncodeAsImmutableProto(i == 0 ? std::string(part) : "\n" + std::string(part));
    const int pieces = static_cast<int>(encoded.pieces_size());
    for (int piece = i == 0 ? 0 : 2; piece < pieces; ++piece) {
      int last = piece;  // of its character
      while (last + 1 < pieces && encoded.pieces(last).begin() == encoded.pieces(last).end() &&
             processor.IsByte(static_cast<int>(encoded.pieces(last).id())))
        ++last;
      out.ids.push_back(encoded.pieces(piece).id());
      out.ends.push_back(static_cast<uint32_t>(cuts[i] + encoded.pieces(last).end() - (i == 0 ? 0 : 1)));
    }
  }
  return out;
}

// The first time the library cuts the words, the second time they are remembered.
void expect_the_librarys_tokens_twice(const Tokenizer& fresh, std::string_view text) {
  const Tokens expected = library_tokens(library(), text);
  for (const char* time : {"first", "second"}) {
    const Tokens tokens = fresh.encode(text);
    ASSERT_TRUE(tokens.ids == expected.ids) << time << " time: " << text.substr(0, 200);
    ASSERT_TRUE(tokens.ends == expected.ends) << time << " time: " << text.substr(0, 200);
  }
}

Tokenizer fresh_tokenizer() {
  auto opened = Tokenizer::open(model_file, 3, 6);
  EXPECT_TRUE(opened) << opened.error().message;
  return *std::move(opened);
}

class GoldenTokenizer : public ::testing::TestWithParam<GoldenCheckpoint> {};

TEST_P(GoldenTokenizer, GivesTheIdsOfTheGoldenText) {
  const auto& [name, model, golden, bf16_weights_error] = GetParam();
  std::ifstream file(golden / "tokenizer_golden.json");
  ASSERT_TRUE(file) << "no tokenizer_golden.json in " << golden;
  const auto json = nlohmann::json::parse(file);
  const auto config = Config::read(model / "config.json");
  ASSERT_TRUE(config) << config.error().message;
  const auto opened = Tokenizer::open(model / "tokenizer.model", config->recall_token_id, config->newline_token_id);
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_EQ(opened->encode(json.at("tokens_of").get<std::string>()).ids, json.at("ids").get<std::vector<uint32_t>>());
}

INSTANTIATE_TEST_SUITE_P(, GoldenTokenizer, ::testing::ValuesIn(golden_checkpoints()),
                         [](const auto& test) { return test.param.name; });

TEST(Tokenizer, GivesTheIdsOfTheLibraryForAnyText) {
  std::mt19937 random(20);
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(random, random() % 60);
    const Tokens tokens = tokenizer().encode(text);
    ASSERT_EQ(tokens.ids, library_ids(text)) << text;
    expect_ends_cut_whole_characters(text, tokens);
  }
}

TEST(Tokenizer, GivesTheIdsOfTheLibraryForLongText) {
  std::mt19937 random(21);
  const std::string mixed = random_text(random, 30000), unbroken(40000, 'a');
  for (const std::string& text : {mixed, unbroken, std::string(5000, ' '), std::string(3000, '\n')}) {
    EXPECT_TRUE(tokenizer().encode(text).ids == library_ids(text));
  }
}

TEST(Tokenizer, RemembersWordsAsTheLibraryCutsThem) {
  using namespace std::string_literals;
  const std::string mark = "\xe2\x96\x81", wide = "\xef\xbd\x86\xef\xbd\x95\xef\xbd\x8c\xef\xbd\x8c";
  std::vector<std::string> texts = {"the cat and the dog",
                                    " the cat",
                                    "  the  cat  ",
                                    "   ",
                                    " ",
                                    "\n",
                                    "\n\n the",
                                    " \n \n",
                                    "the\ncat\n\nthe cat\n",
                                    "\tthe\tcat \t the",
                                    "the\r\ncat",
                                    "a\0b \0 \0\0c"s,
                                    "\0"s,
                                    "\xc2\xa0the\xc2\xa0 cat",
                                    "\xe2\x80\x83the\xe3\x80\x80 cat",
                                    "\xe2\x80\x8bthe \xe2\x80\x8b",
                                    mark,
                                    mark + mark,
                                    mark + "the",
                                    " " + mark + "the " + mark,
                                    "the" + mark + "cat" + mark,
                                    mark + " " + mark + "\n" + mark,
                                    "\xe2\x96\x80 \xe2\x96\x82the",
                                    "e\xcc\x81 caf\xc3\xa9 cafe\xcc\x81 \xcc\x81",
                                    wide + " " + wide,
                                    "\xef\xac\x81sh \xe2\x91\xa0 \xc2\xbd \xe2\x84\xab",
                                    "\xf0\x9f\x99\x82",
                                    "a \xf0\x9f\x99\x82\xf0\x9f\xa7\xbf b",
                                    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7 \xf0\x9f\x87\xb3\xf0\x9f\x87\xb1",
                                    "\xe4\xbd\xa0\xe5\xa5\xbd \xe4\xbd\xa0",
                                    "\x01\x7f \x01",
                                    "<|recall|>",
                                    " <|recall|>",
                                    "a <|user|> b<|assistant|><|user|>",
                                    "<|recall|><|recall|> <|recall|>\n<|user|>",
                                    "<| recall|> <|recall",
                                    "<unk> <s></s> <0x0A>",
                                    "User: yes",
                                    "2026-11-26T17:00:00.000Z 3.14159265358979323846"};
  for (size_t bytes = 36; bytes <= 44; ++bytes) {  // about as long as the cache takes
    texts.push_back("the " + std::string(bytes, 'e') + " the");
    texts.push_back(std::string(bytes, 'e') + " " + std::string(bytes, '7'));
    texts.push_back(std::string(bytes, 'e') + "\xe4\xbd\xa0 the");
  }
  texts.push_back("the " + std::string(60'000, 'e') + " the");
  const Tokenizer fresh = fresh_tokenizer();
  for (const std::string& text : texts) expect_the_librarys_tokens_twice(fresh, text);
  const auto shared = fresh_tokenizer();  // in the other order, so that other words are met first
  for (auto text = texts.rbegin(); text != texts.rend(); ++text) expect_the_librarys_tokens_twice(shared, *text);
}

TEST(Tokenizer, RemembersWordsOfRandomText) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const Tokenizer fresh = fresh_tokenizer();
  for (int round = 0; round < 3000 && !HasFailure(); ++round) {
    std::string text = random_text(random, random() % 60);
    if (round % 8 == 0) text.insert(text.size() / 2, "<|recall|>").insert(0, "<|user|>");
    expect_the_librarys_tokens_twice(fresh, text);
  }
}

TEST(Tokenizer, RemembersMoreWordsThanItHasRoomFor) {
  const Tokenizer fresh = fresh_tokenizer();
  std::mt19937 random(23);
  std::string text;
  while (text.size() < size_t{1} << 20) {
    const size_t letters = 1 + random() % 8;  // of few kinds: some words come often and most once
    for (size_t i = 0; i < letters; ++i) text += static_cast<char>('a' + random() % (i < 2 ? 6 : 26));
    text += random() % 12 == 0 ? '\n' : ' ';
  }
  expect_the_librarys_tokens_twice(fresh, text);
}

TEST(Tokenizer, ThreadsShareWhatItRemembers) {
  const Tokenizer fresh = fresh_tokenizer();
  std::mt19937 random(24);
  std::vector<std::string> texts;
  for (int i = 0; i < 200; ++i) texts.push_back(random_text(random, 100));
  std::vector<Tokens> expected;
  for (const std::string& text : texts) expected.push_back(library_tokens(library(), text));
  std::atomic<size_t> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      for (size_t i = 0; i < 10 * texts.size(); ++i) {
        const size_t at = (i * (2 * thread + 1)) % texts.size();
        const Tokens tokens = fresh.encode(texts[at]);
        wrong += tokens.ids != expected[at].ids || tokens.ends != expected[at].ends;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
}

// A vocabulary in which a piece goes on over the beginning of a word: there the pieces of a word depend on the one
// before it.
TEST(Tokenizer, RemembersNoWordsWherePiecesGoBeyondThem) {
  std::string model = library().serialized_model_proto();
  const std::string piece = "\x0a\x05\xe2\x96\x81to", across = "\x0a\x05t\xe2\x96\x81o";
  const size_t at = model.find(piece + "\x15");
  ASSERT_NE(at, model.npos);
  model.replace(at, across.size(), across);
  const auto path = std::filesystem::path(testing::TempDir()) / "tokenizer_test.across.model";
  std::ofstream(path, std::ios::binary) << model;
  const auto opened = Tokenizer::open(path, 3, 6);
  ASSERT_TRUE(opened) << opened.error().message;
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(path.string()).ok());
  std::filesystem::remove(path);

  const std::string text = "qt o qt o o qt";
  const Tokens expected = library_tokens(processor, text);
  EXPECT_EQ(
      std::ranges::count_if(expected.ids,
                            [&](uint32_t id) { return processor.IdToPiece(static_cast<int>(id)) == across.substr(2); }),
      2);
  for (int time = 0; time < 2; ++time) {
    EXPECT_EQ(opened->encode(text).ids, expected.ids);
    EXPECT_EQ(opened->encode(text).ends, expected.ends);
  }
}

TEST(Tokenizer, AWordThatIsTooLongIsCutBetweenCharacters) {
  for (const std::string character : {"a", "\xe4\xbd\xa0", "\xf0\x9f\xa7\xbf", " "}) {
    std::string text = "before ";
    for (int i = 0; i < 150'000; ++i) text += character;
    text += "<|recall|> after";
    const Tokens tokens = tokenizer().encode(text);
    expect_ends_cut_whole_characters(text, tokens);
    EXPECT_TRUE(tokenizer().decode(tokens.ids) == text);
    EXPECT_EQ(std::ranges::count(tokens.ids, tokenizer().recall_id()), 0);
  }
}

TEST(Tokenizer, EveryTokenKnowsItsBytes) {
  const std::string text = "Anna met\n  Boris";
  const Tokens tokens = tokenizer().encode(text);
  uint32_t begin = 0;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    std::string piece = library().IdToPiece(static_cast<int>(tokens.ids[i]));
    for (size_t at; (at = piece.find("\xe2\x96\x81")) != std::string::npos;) piece.replace(at, 3, " ");
    if (i == 0) piece.erase(0, 1);  // the dummy prefix
    EXPECT_EQ(text.substr(begin, tokens.ends[i] - begin), piece);
    begin = tokens.ends[i];
  }
}

TEST(Tokenizer, ACharacterOfSeveralPiecesBelongsToTheFirst) {
  const std::string text = "x\xf0\x9f\xa7\xbf y";  // a nazar amulet, outside the vocabulary: four byte pieces
  const Tokens tokens = tokenizer().encode(text);
  EXPECT_EQ(tokens.ids, library_ids(text));
  std::vector<uint32_t> at_five;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.ends[i] == 5) at_five.push_back(tokens.ids[i]);
  }
  EXPECT_EQ(at_five, (std::vector<uint32_t>{7 + 0xf0, 7 + 0x9f, 7 + 0xa7, 7 + 0xbf}));
  expect_ends_cut_whole_characters(text, tokens);
}

TEST(Tokenizer, SpecialStringsInContentBecomePlainPieces) {
  for (const std::string special : {"<|recall|>", "<|user|>", "<|assistant|>", "<unk>", "<s>", "</s>", "<0x0A>"}) {
    const std::string text = "a" + special + "b " + special;
    const Tokens tokens = tokenizer().encode(text);
    for (const uint32_t id : tokens.ids) EXPECT_TRUE(id >= 7) << special << " gave piece " << id;
    expect_ends_cut_whole_characters(text, tokens);
    EXPECT_EQ(tokenizer().decode(tokens.ids), text);
  }
}

TEST(Tokenizer, NulBytesStayWhatTheyAre) {
  using namespace std::string_literals;
  for (const std::string& text : {"a\0b"s, "\0"s, "\0\0\0"s, "<|rec\0all|>"s, "end\0"s}) {
    const Tokens tokens = tokenizer().encode(text);
    EXPECT_EQ(std::count(tokens.ids.begin(), tokens.ids.end(), 7u), std::count(text.begin(), text.end(), '\0'));
    EXPECT_EQ(tokenizer().decode(tokens.ids), text);
    expect_ends_cut_whole_characters(text, tokens);
  }
}

TEST(Tokenizer, ATurnEndsWithTheNewlinePieceAndItsByte) {
  const Tokens turn = tokenizer().encode_turn("User: ", "hello\nthere");
  const Tokens plain = tokenizer().encode("User: hello\nthere");
  ASSERT_EQ(turn.ids.size(), plain.ids.size() + 1);
  EXPECT_TRUE(std::equal(plain.ids.begin(), plain.ids.end(), turn.ids.begin()));
  EXPECT_TRUE(std::equal(plain.ends.begin(), plain.ends.end(), turn.ends.begin()));
  EXPECT_EQ(turn.ids.back(), 6u);
  EXPECT_EQ(turn.ends.back(), 18u);
  EXPECT_EQ(tokenizer().encode_turn("", "").ids, std::vector<uint32_t>{6});
}

TEST(Tokenizer, AQueryStandsBetweenNewlineAndRecall) {
  const std::vector<uint32_t> plain = tokenizer().encode("Who is <|user|>?").ids;
  const std::vector<uint32_t> query = tokenizer().encode_query("Who is <|user|>?");
  ASSERT_EQ(query.size(), plain.size() + 2);
  EXPECT_EQ(query.front(), 6u);
  EXPECT_TRUE(std::equal(plain.begin(), plain.end(), query.begin() + 1));
  EXPECT_EQ(query.back(), 3u);
}

TEST(Tokenizer, BytesThatAreNotUtf8DoNoHarm) {
  std::mt19937 random(22);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 20, ' ');
    for (char& byte : text) byte = static_cast<char>(random());
    const Tokens tokens = tokenizer().encode(text);
    ASSERT_EQ(tokens.ids.size(), tokens.ends.size());
    if (!text.empty()) {
      ASSERT_EQ(tokens.ends.back(), text.size());
    }
    for (const uint32_t id : tokens.ids) ASSERT_LT(id, tokenizer().vocab_size());
  }
}

TEST(Tokenizer, RefusesFilesThatAreNotItsModel) {
  const auto path = std::filesystem::path(testing::TempDir()) / "tokenizer_test.model";
  for (const std::string& bytes : {std::string(), std::string("not a model"), std::string(100000, '\xff')}) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    const auto opened = Tokenizer::open(path, 3, 6);
    ASSERT_FALSE(opened);
    EXPECT_NE(opened.error().message.find("tokenizer_test.model"), std::string::npos) << opened.error().message;
  }
  std::filesystem::remove(path);
  EXPECT_FALSE(Tokenizer::open(path, 3, 6));
  EXPECT_FALSE(Tokenizer::open(model_file, 3, 7));
  EXPECT_FALSE(Tokenizer::open(model_file, 1000000, 6));
}

}  // namespace
}  // namespace recalld
