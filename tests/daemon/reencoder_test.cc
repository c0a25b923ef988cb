// Another model: encoding the store anew for it behind what is served, and changing over to it.
#include "daemon/reencoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <sstream>

#include "daemon/successor.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/files_with.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::string bytes_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

// A checkpoint of its own: other weights in the lower layers, and a tokenizer that lacks the piece " boats".
std::filesystem::path make_model(const std::filesystem::path& directory, char sign) {
  std::filesystem::copy(starter_checkpoint(), directory);
  std::string weights = bytes_of(directory / "model.safetensors");
  const size_t header_bytes =
      8 + (static_cast<uint8_t>(weights[0]) | static_cast<size_t>(static_cast<uint8_t>(weights[1])) << 8 |
           static_cast<size_t>(static_cast<uint8_t>(weights[2])) << 16);
  const std::string tensor = "\"backbone.layers.1.mixer.conv1d.bias\"";
  const size_t entry = weights.find(tensor), offsets = weights.find('[', weights.find("data_offsets", entry)) + 1;
  const size_t begin = std::stoul(weights.substr(offsets, 20));
  const size_t end = std::stoul(weights.substr(weights.find(',', offsets) + 1, 20));
  if (entry == std::string::npos || end <= begin || header_bytes + end > weights.size())
    throw std::runtime_error("the checkpoint has no " + tensor);
  for (size_t at = header_bytes + begin; at < header_bytes + end; at += 2) {
    weights[at] = static_cast<char>(weights[at] ^ sign);
    weights[at + 1] = static_cast<char>(weights[at + 1] ^ 0x80);  // the sign of a bf16
  }
  std::ofstream(directory / "model.safetensors", std::ios::binary) << weights;

  std::string tokenizer = bytes_of(directory / "tokenizer.model");
  const std::string piece =
      "\x0a\x08\xe2\x96\x81"
      "boats";
  if (!tokenizer.contains(piece)) throw std::runtime_error("the tokenizer has no piece for boats");
  tokenizer.replace(tokenizer.find(piece), piece.size(),
                    "\x0a\x08\xe2\x96\x81"
                    "qzxqj");
  std::ofstream(directory / "tokenizer.model", std::ios::binary) << tokenizer;
  return directory;
}

// Directories of models are made once for all tests of this file.
struct Models {
  TempDir directory;
  std::filesystem::path second = make_model(directory.path() / "second", 0x01);
  std::filesystem::path third = make_model(directory.path() / "third", 0x02);
};
const Models& models() {
  static const Models models;
  return models;
}

class ReencoderTest : public ::testing::Test {
 protected:
  std::filesystem::path data() const { return directory_.path() / "data"; }
  std::filesystem::path next() const { return data() / "next"; }

  // Starts encoding anew and waits until everything is encoded.
  JobView encode_anew(const std::filesystem::path& model) {
    const JobView begun = must(engine_.reencode(model));
    EngineDriver::wait_for("the store to be encoded anew", [&] { return engine_.job(begun.job).state != "running"; });
    return engine_.job(begun.job);
  }

  TempDir directory_;
  EngineDriver engine_{data()};
};

void expect_same_turns(const std::vector<StoredTurn>& a, const std::vector<StoredTurn>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].turn, b[i].turn);
    EXPECT_EQ(a[i].value.role, b[i].value.role);
    EXPECT_EQ(a[i].value.name, b[i].value.name);
    EXPECT_EQ(a[i].value.content, b[i].value.content);
    EXPECT_EQ(a[i].value.time_us, b[i].value.time_us);
    EXPECT_EQ(a[i].value.metadata, b[i].value.metadata);
  }
}

TEST_F(ReencoderTest, TheOldEncodingsServeUntilAStartWithTheModelChangesOverAndNothingIsLost) {
  auto log = harbour_log(0, 250);
  log[30] = fact;
  log[60] = log[200] = secret;
  engine_.open();
  engine_.append("m", log, true);
  engine_.append("gone", {secret, "and more"}, true);
  AppendRequest rich = EngineDriver::request("rich", {"First of an operation.", "Second of it."});
  rich.operation_id = "an operation";
  rich.turns[0].turn.role = Role::tool;
  rich.turns[0].turn.name = "windlass";
  rich.turns[0].turn.metadata = R"({"depth":4})";
  rich.turns[1].has_time = true;
  rich.turns[1].turn.time_us = 1'600'000'000'000'123;
  const AppendReply rich_reply = must(engine_.append(rich));
  AppendRequest forgotten_operation = EngineDriver::request("rich", {secret});
  forgotten_operation.operation_id = "a forgotten operation";
  const AppendReply forgotten_reply = must(engine_.append(forgotten_operation));

  const JobView begun = must(engine_.reencode(models().second));
  EXPECT_EQ(begun.kind, "reencode");
  EXPECT_EQ(begun.state, "running");
  EXPECT_EQ(must(engine_.reencode(models().second)).job, begun.job);
  EXPECT_EQ(engine_.reencode(models().third).error().kind, ErrorKind::busy);

  // Meanwhile everything goes on.
  EngineDriver::wait_for("some of it", [&] { return engine_.job(begun.job).done > 0; });
  EXPECT_EQ(engine_.job(begun.job).state, "running");
  EXPECT_THAT(engine_.found("m", question), HasSubstr("60417"));
  engine_.append("m", {"The blue kite landed on the customs house."});
  log.emplace_back("The blue kite landed on the customs house.");
  EXPECT_THAT(files_with(next(), secret_words), Not(IsEmpty()));
  EXPECT_TRUE(engine_.forget("m", {{60, 60}, {200, 200}}).complete);
  EXPECT_TRUE(engine_.forget("rich", {{forgotten_reply.first_turn, forgotten_reply.last_turn}}).complete);
  EXPECT_TRUE(engine_.remove("gone").receipt.complete);
  EXPECT_THAT(files_with(data(), secret_words), IsEmpty());
  std::erase(log, secret);

  EngineDriver::wait_for("the rest", [&] { return engine_.job(begun.job).state != "running"; });
  const JobView job = engine_.job(begun.job);
  EXPECT_EQ(job.state, "done");
  EXPECT_GT(job.total, 100u);
  EXPECT_EQ(job.done, job.total);
  EXPECT_THAT(job.message, AllOf(HasSubstr("stop recalld"), HasSubstr("--model " + models().second.string())));
  engine_.append("m", {"Appended after all was encoded."});
  log.emplace_back("Appended after all was encoded.");
  const auto turns = engine_.turns("m"), rich_turns = engine_.turns("rich");
  engine_.close();

  engine_.open();  // the old model serves still
  EXPECT_THAT(engine_.found("m", question), HasSubstr("60417"));
  engine_.close();

  engine_.use_model(models().second);
  engine_.open();
  EXPECT_FALSE(std::filesystem::exists(next()));
  EXPECT_FALSE(std::filesystem::exists(data() / "ADOPTING"));
  expect_same_turns(engine_.turns("m"), turns);
  expect_same_turns(engine_.turns("rich"), rich_turns);
  EXPECT_EQ(engine_.try_search("gone", "more").error().kind, ErrorKind::not_found);
  const AppendReply again = must(engine_.append(rich));
  EXPECT_EQ(again.first_turn, rich_reply.first_turn);
  EXPECT_EQ(again.last_turn, rich_reply.last_turn);
  const AppendReply forgotten_again = must(engine_.append(forgotten_operation));
  EXPECT_EQ(forgotten_again.first_turn, forgotten_reply.first_turn);
  EXPECT_EQ(engine_.info("rich").next_turn, 3u);
  EXPECT_EQ(engine_.info("rich").turns, 2u);
  engine_.settle();
  EXPECT_THAT(engine_.found("m", "Where did the blue kite land?"), HasSubstr("customs house"));
  EXPECT_THAT(files_with(data(), secret_words), IsEmpty());
  engine_.close();
  const MemoryContents never = contents_made_of(log, models().second);
  expect_same_encodings(contents_of(data(), "m"), never);

  // The two models do make different things of it.
  EngineDriver other(directory_.path() / "other");
  other.open();
  other.append("m", log, true);
  other.close();
  const MemoryContents of_default = contents_of(other.data(), "m");
  EXPECT_NE(of_default.tokens.size(), never.tokens.size());
  EXPECT_NE(of_default.landmarks.at(0), never.landmarks.at(0));
}

TEST_F(ReencoderTest, ARestartInTheMiddleGoesOnByItself) {
  const auto log = harbour_log(0, 300);
  engine_.open();
  engine_.append("m", log, true);
  const JobView begun = must(engine_.reencode(models().second));
  EngineDriver::wait_for("some of it", [&] { return engine_.job(begun.job).done > 0; });
  EXPECT_EQ(engine_.job(begun.job).state, "running");
  engine_.close();
  {
    const StoreStats there = must(open_store(next())->stats());
    EXPECT_GT(there.encoded_chunks, 0u);
    EXPECT_GT(there.waiting_chunks, 0u);
  }
  engine_.open();
  // It is listed a moment before it tells how far it had come.
  EngineDriver::wait_for("the job", [&] { return !engine_.jobs().empty() && engine_.jobs()[0].done > 0; });
  EXPECT_EQ(engine_.jobs()[0].kind, "reencode");
  engine_.settle();
  EXPECT_EQ(engine_.jobs()[0].state, "done");
  engine_.close();
  engine_.use_model(models().second);
  engine_.open();
  engine_.settle();
  engine_.close();
  expect_same_encodings(contents_of(data(), "m"), contents_made_of(log, models().second));
}

TEST_F(ReencoderTest, CancellingRemovesWhatWasEncodedAndALaterAttemptBeginsAfresh) {
  engine_.open();
  engine_.append("m", harbour_log(0, 100), true);
  EXPECT_EQ(engine_.reencode({}, true).error().kind, ErrorKind::not_found);
  const JobView begun = must(engine_.reencode(models().third));
  EXPECT_TRUE(std::filesystem::exists(next() / "FORMAT"));
  const JobView cancelled = must(engine_.reencode({}, true));
  EXPECT_EQ(cancelled.job, begun.job);
  EXPECT_EQ(cancelled.state, "failed");
  EXPECT_THAT(cancelled.message, HasSubstr("cancelled"));
  EXPECT_FALSE(std::filesystem::exists(next()));
  EXPECT_FALSE(std::filesystem::exists(data() / "dropped"));
  EXPECT_EQ(engine_.reencode({}, true).error().kind, ErrorKind::not_found);
  EXPECT_EQ(encode_anew(models().second).state, "done");
  EXPECT_TRUE(must(engine_.reencode({}, true)).message.contains("cancelled"));

  // A crash in the midst of it.
  encode_anew(models().second);
  engine_.close();
  std::filesystem::rename(next(), data() / "dropped");
  std::filesystem::remove(data() / "dropped/FORMAT");
  engine_.open();
  EXPECT_FALSE(std::filesystem::exists(data() / "dropped"));
  EXPECT_EQ(encode_anew(models().second).state, "done");
}

TEST_F(ReencoderTest, WhatIsForAnotherModelIsRefusedInWordsThatNameTheNextStep) {
  engine_.open();
  engine_.append("m", harbour_log(0, 30), true);
  const auto same = engine_.reencode(starter_checkpoint());
  ASSERT_FALSE(same);
  EXPECT_THAT(same.error().message, HasSubstr("give another one"));
  const auto nowhere = engine_.reencode(directory_.path() / "nowhere");
  ASSERT_FALSE(nowhere);
  EXPECT_THAT(nowhere.error().message, HasSubstr("nowhere"));
  EXPECT_FALSE(std::filesystem::exists(next()));
  engine_.close();

  // A start with another model, when nothing is prepared.
  engine_.use_model(models().third);
  auto refused = engine_.try_open();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refused.error().message, AllOf(HasSubstr("recall reencode"), HasSubstr("--reencode")));

  // And when the store is being made for a second one.
  engine_.use_model(starter_checkpoint());
  engine_.open();
  encode_anew(models().second);
  engine_.close();
  engine_.use_model(models().third);
  refused = engine_.try_open();
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, AllOf(HasSubstr("recall reencode"), HasSubstr("--model")));
  refused = engine_.try_open(true);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refused.error().message,
              AllOf(HasSubstr("another model"), HasSubstr(next().string()), HasSubstr("--cancel")));
  engine_.use_model(starter_checkpoint());
  engine_.open();
  EngineDriver::wait_for("the job", [&] { return !engine_.jobs().empty(); });
  EXPECT_THAT(engine_.reencode(models().third).error().message, HasSubstr("recall reencode --cancel"));
}

// Where the second model's directory has gone, what is made for it is still there and refuses a third.
TEST_F(ReencoderTest, AThirdModelIsRefusedWhileTheSecondCannotBeLoaded) {
  engine_.open();
  engine_.append("m", harbour_log(0, 30), true);
  encode_anew(models().second);
  engine_.close();
  std::ofstream(next() / "MODEL") << (directory_.path() / "nowhere").string();
  engine_.open();
  const auto refused = engine_.reencode(models().third);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refused.error().message, AllOf(HasSubstr("another model"), HasSubstr("recall reencode --cancel")));
  EXPECT_THAT(must(engine_.reencode({}, true)).message, HasSubstr("cancelled"));
  EXPECT_EQ(encode_anew(models().third).state, "done");
}

TEST_F(ReencoderTest, ACrashAtAnyStepOfTheChangeOverIsMadeGoodByTheNextStart) {
  auto log = harbour_log(0, 80);
  log[30] = fact;
  engine_.open();
  engine_.append("m", log, true);
  encode_anew(models().second);
  const auto turns = engine_.turns("m");
  engine_.close();
  const MemoryContents never = contents_made_of(log, models().second);
  const std::filesystem::path kept = directory_.path() / "kept";
  std::filesystem::rename(data(), kept);

  using std::filesystem::remove_all;
  using std::filesystem::rename;
  const std::vector<std::pair<std::string, std::function<void()>>> steps{
      {"the change-over is noted", [&] { std::ofstream(data() / "ADOPTING") << "DATA/next\n"; }},
      {"a part of the old catalog is gone",
       [&] {
         for (const auto& file : std::filesystem::directory_iterator(data() / "catalog"))
           if (file.path().extension() != ".log") std::filesystem::remove(file);
       }},
      {"the old catalog is gone", [&] { remove_all(data() / "catalog"); }},
      {"the catalog is moved", [&] { rename(next() / "catalog", data() / "catalog"); }},
      {"the old segments are gone", [&] { remove_all(data() / "kv"); }},
      {"the segments are moved", [&] { rename(next() / "kv", data() / "kv"); }},
      {"the stamp is moved", [&] { rename(next() / "FORMAT", data() / "FORMAT"); }},
      {"what is left of the new store is gone", [&] { remove_all(next()); }},
  };
  for (size_t count = 1; count <= steps.size(); ++count) {
    SCOPED_TRACE("crash after: " + steps[count - 1].first);
    remove_all(data());
    std::filesystem::copy(kept, data(), std::filesystem::copy_options::recursive);
    for (size_t i = 0; i < count; ++i) steps[i].second();

    if (count % 2 == 0) {  // the old model is no longer the store's
      engine_.use_model(starter_checkpoint());
      const auto refused = engine_.try_open();
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request) << refused.error().message;
    }
    engine_.use_model(models().second);
    const auto opened = engine_.try_open();
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_FALSE(std::filesystem::exists(next()));
    EXPECT_FALSE(std::filesystem::exists(data() / "ADOPTING"));
    expect_same_turns(engine_.turns("m"), turns);
    EXPECT_THAT(engine_.found("m", question), HasSubstr("60417"));
    engine_.close();
    expect_same_encodings(contents_of(data(), "m"), never);
  }
}

TEST_F(ReencoderTest, AStartThatIsToldToEncodesAnewWithoutTheOldModel) {
  auto log = harbour_log(0, 120);
  log[100] = secret;
  engine_.open();
  engine_.append("m", log, true);
  engine_.append("small", {fact}, true);
  engine_.forget("m", {{100, 100}});
  const auto turns = engine_.turns("m");
  engine_.close();
  engine_.use_model(models().second);
  engine_.open(true);
  expect_same_turns(engine_.turns("m"), turns);
  EXPECT_FALSE(std::filesystem::exists(next()));
  EXPECT_EQ(engine_.info("m").next_turn, 120u);
  EXPECT_THAT(engine_.found("small", question), HasSubstr("60417"));
  engine_.settle();
  engine_.close();
  engine_.open();  // no longer needs to be told
  engine_.close();
  std::erase(log, secret);
  expect_same_encodings(contents_of(data(), "m"), contents_made_of(log, models().second));
}

TEST_F(ReencoderTest, WhatIsForgottenWhileTheOtherModelCannotBeLoadedIsForgottenThereToo) {
  auto log = harbour_log(0, 60);
  log[20] = secret;
  log[40] = "The quince jam is behind the barometer.";
  engine_.open();
  engine_.append("m", log, true);
  engine_.append("gone", {"Saltpetre for the beacon."}, true);
  encode_anew(models().second);
  engine_.close();
  std::ofstream(next() / "MODEL") << (directory_.path() / "nowhere").string();

  // A crash after the store had forgotten, and before what follows it had.
  {
    const auto store = open_store(data());
    must(store->forget(must(store->memory("m")).id, std::array{TurnRange{20, 20}}));
    must(store->remove("gone"));
  }
  ASSERT_THAT(files_with(next(), secret_words), Not(IsEmpty()));
  ASSERT_THAT(files_with(next(), "Saltpetre"), Not(IsEmpty()));
  engine_.open();
  engine_.settle();
  EXPECT_THAT(files_with(data(), secret_words), IsEmpty());
  EXPECT_THAT(files_with(data(), "Saltpetre"), IsEmpty());
  EXPECT_TRUE(engine_.forget("m", {{40, 40}}).complete);
  EXPECT_THAT(files_with(data(), "quince jam"), IsEmpty());
}

TEST_F(ReencoderTest, AMemoryThatTookTheNameOfADeletedOneKeepsItsTurns) {
  engine_.open();
  engine_.append("m", harbour_log(0, 200), true);
  encode_anew(models().second);
  // The erasures wait for the rebuild, and by then the name is another memory's.
  engine_.forget("m", {{0, 3}}, false);
  engine_.remove("m", false);
  engine_.append("m", harbour_log(500, 540));
  const auto turns = engine_.turns("m");
  engine_.settle();
  engine_.close();
  engine_.use_model(models().second);
  engine_.open();
  expect_same_turns(engine_.turns("m"), turns);
  EXPECT_THAT(files_with(data(), "Entry 123"), IsEmpty());
}

TEST_F(ReencoderTest, WhatIsToldLateOfADeletedMemoryDoesNotTouchTheOneThatTookItsName) {
  engine_.open();
  engine_.append("m", harbour_log(0, 10));
  engine_.close();
  const auto store = open_store(data());
  const Tokenizer tokenizer = must(Tokenizer::open(models().second / "tokenizer.model", 3, 6));
  RecordShape shape = *must(DataDirectory::stamp(data()));
  shape.model = hash128(as_bytes("another model"));
  const auto successor = must(Successor::open(data(), shape, uint64_t{16} << 20));
  must(successor->copy_all(*store, tokenizer));

  const MemoryInfo old = must(store->remove("m"));
  const MemoryInfo anew = must(store->restore_memory("m", old.created_us + 1, old.created_us + 1));
  std::vector<NewTurn> turns;
  for (const std::string& content : harbour_log(20, 26)) {
    const Turn turn{.role = Role::user, .name = {}, .content = content, .time_us = 1, .metadata = {}};
    Tokens tokens = tokenizer.encode_turn(turn_prefix(turn), content);
    turns.push_back({turn, std::move(tokens.ids), std::move(tokens.ends), turns.size()});
  }
  must(store->restore_turns(anew.id, 0, turns, anew.created_us));
  must(successor->copy_all(*store, tokenizer));
  EXPECT_EQ(must(successor->store().memory("m")).created_us, anew.created_us);

  must(successor->forget("m", old.created_us, std::array{TurnRange{0, 3}}));
  must(successor->remove("m", old.created_us));
  EXPECT_EQ(must(successor->store().memory("m")).turns, 6u);
  must(successor->forget("m", anew.created_us, std::array{TurnRange{0, 3}}));
  EXPECT_EQ(must(successor->store().memory("m")).turns, 2u);
  must(successor->remove("m", anew.created_us));
  EXPECT_EQ(successor->store().memory("m").error().kind, ErrorKind::not_found);
}

TEST_F(ReencoderTest, ADamagedStoreOfTheOtherModelIsDroppedAndDoesNotKeepTheOldOneFromServing) {
  engine_.open();
  engine_.append("m", harbour_log(0, 30), true);
  const std::vector<std::function<void()>> damages{
      [&] { std::ofstream(next() / "FORMAT") << "no stamp"; },
      [&] { std::filesystem::remove_all(next() / "catalog"); },
      [&] { std::filesystem::remove(next() / "catalog/CURRENT"); },
  };
  for (const auto& damage : damages) {
    EXPECT_EQ(encode_anew(models().second).state, "done");
    engine_.close();
    damage();
    engine_.open();
    EXPECT_FALSE(std::filesystem::exists(next()));
    EXPECT_THAT(engine_.found("m", "boats on entry 17"), HasSubstr("Entry"));
  }
}

TEST_F(ReencoderTest, AStoreThatHasLostItsCatalogIsRefusedAndItsSegmentsAreKept) {
  engine_.open();
  engine_.append("m", harbour_log(0, 30), true);
  engine_.close();
  const auto segment = data() / "kv/000000.seg";
  ASSERT_TRUE(std::filesystem::exists(segment));
  const std::filesystem::path kept = directory_.path() / "kept";
  std::filesystem::rename(data() / "catalog", kept);
  for (const bool empty : {false, true}) {
    if (empty) std::filesystem::create_directory(data() / "catalog");
    const auto refused = engine_.try_open();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::corrupt);
    EXPECT_THAT(refused.error().message, AllOf(HasSubstr("catalog is missing"), HasSubstr("backup")));
    EXPECT_TRUE(std::filesystem::exists(segment));
  }
  std::filesystem::remove_all(data() / "catalog");
  std::filesystem::rename(kept, data() / "catalog");
  engine_.open();
  EXPECT_EQ(engine_.turns("m").size(), 30u);
}

}  // namespace
}  // namespace recalld
