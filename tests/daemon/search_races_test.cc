// Searches that meet turns being forgotten and memories being deleted. `done` blocks the thread that calls it here, so
// that each test has one order of what happens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/daemon/engine_fixture.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Holds a thread from when it calls `done` on.
template <class Reply>
class Held {
 public:
  template <class Call>
  explicit Held(Call call) {
    call([this](const Expected<Reply>& reply) {
      EXPECT_TRUE(reply) << reply.error().message;
      here_.set_value();
      released_.get_future().wait();
      left_.set_value();
    });
  }
  ~Held() { release(); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  void wait() { here_.get_future().wait(); }
  void release() {
    if (std::exchange(is_released_, true)) return;
    released_.set_value();
    left_.get_future().wait();
  }

 private:
  bool is_released_ = false;
  std::promise<void> here_, released_, left_;
};

class SearchRaces : public ::testing::Test {
 protected:
  void SetUp() override {
    engine_.open();
    engine_.append("others", {"Ahoy."}, true);
  }
  static SearchRequest asking(const std::string& memory, SearchMode mode) {
    return {.memory = memory, .query = secret_question, .mode = mode, .limit = 8, .max_tokens = {}, .min_score = {}};
  }
  // A call of which the answer is waited for later.
  template <class Reply, class Call>
  static std::future<Expected<Reply>> begin(Call call) {
    auto promise = std::make_shared<std::promise<Expected<Reply>>>();
    auto future = promise->get_future();
    call([promise](Expected<Reply> reply) { promise->set_value(std::move(reply)); });
    return future;
  }
  auto begin_search(SearchRequest request) {
    return begin<SearchReply>([&](auto done) { engine_->search(std::move(request), std::move(done)); });
  }
  using HeldReader = Held<SearchReply>;
  std::unique_ptr<HeldReader> hold_reader() {
    auto held = std::make_unique<HeldReader>(
        [&](auto done) { engine_->search(asking("others", SearchMode::lexical), std::move(done)); });
    held->wait();
    return held;
  }

  TempDir directory_;
  EngineDriver engine_{directory_.path() / "data"};
};

TEST_F(SearchRaces, ASearchThatRankedWhatIsForgottenMeanwhileRanksAnew) {
  auto log = harbour_log(0, 280);
  log[20] = secret;
  engine_.append("m", log, true);
  engine_.settle();
  const uint64_t before = engine_.info("m").encoded_chunks;
  ASSERT_GT(before, 2 * Fusion::depth);

  // The model thread is held, so that the search comes before the encoding without the turns.
  AppendRequest more = EngineDriver::request("held", harbour_log(0, 20));
  more.wait_searchable = true;
  Held<AppendReply> model([&](auto done) { engine_->append(std::move(more), std::move(done)); });
  model.wait();
  auto forgotten = begin<Receipt>([&](auto done) {
    engine_->forget({.memory = "m", .turns = {{10, 229}}, .filter = {}, .dry_run = false, .wait = true},
                    std::move(done));
  });
  EngineDriver::wait_for("the turns to be hidden", [&] { return engine_.info("m").next.has_value(); });
  // And so are the read workers, so that it reads what it ranked after the swap.
  const auto one = hold_reader(), two = hold_reader();
  auto found = begin_search(asking("m", SearchMode::hybrid));
  engine_.append("others", {"Ahoy."});  // tokenised behind the search
  model.release();
  ASSERT_TRUE(forgotten.get());
  one->release();
  two->release();

  const Expected<SearchReply> reply = found.get();
  ASSERT_TRUE(reply) << reply.error().message;
  const uint64_t after = engine_.info("m").encoded_chunks;
  ASSERT_LT(after, before / 2);
  ASSERT_FALSE(reply->results.empty());
  for (const auto& result : reply->results) {
    EXPECT_LE(result.chunk, after);
    EXPECT_THAT(result.passage.text, Not(HasSubstr(secret_words)));
  }
}

TEST_F(SearchRaces, AMemoryOfAPrefixThatIsDeletedMeanwhileIsNoneOfIt) {
  engine_.append("user/alice/chats", harbour_log(0, 40), true);
  for (const SearchMode mode : {SearchMode::hybrid, SearchMode::landmark}) {
    SCOPED_TRACE(static_cast<int>(mode));
    engine_.append("user/alice/notes", harbour_log(40, 80), true);
    engine_.settle();
    auto one = hold_reader(), two = hold_reader();
    auto removed = begin<DeleteReply>([&](auto done) {
      engine_->memories_delete({"user/alice/notes", /*wait=*/false}, std::move(done));
    });
    SearchRequest request = asking("", mode);
    request.prefix = "user/alice/";
    auto found = begin_search(std::move(request));
    engine_.append("others", harbour_log(0, 10), true);  // encoded behind the search
    one->release();                                      // one read worker deletes, and only then collects
    const Expected<SearchReply> reply = found.get();
    two->release();
    ASSERT_TRUE(removed.get());
    ASSERT_TRUE(reply) << reply.error().message;
    ASSERT_EQ(reply->memories->size(), 1u);
    EXPECT_EQ(reply->memories->front().memory, "user/alice/chats");
    ASSERT_FALSE(reply->results.empty());
    for (const auto& result : reply->results) EXPECT_EQ(result.memory, "user/alice/chats");
  }
}

}  // namespace
}  // namespace recalld
