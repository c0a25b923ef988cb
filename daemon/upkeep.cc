#include "daemon/upkeep.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>
#include <utility>

#include <boost/asio/post.hpp>

#include "memstore/turn.h"

namespace recalld {
namespace {

constexpr size_t page_memories = 1'000;
constexpr int mending_rounds_max = 3;  // a state that was mended lets the next round mend what came behind it

Error stopping() {
  return {ErrorKind::busy, "verify the store: the daemon stops; ask again when it runs"};
}

bool same_damage(const Problem& a, const Problem& b) {
  return a.part == b.part && a.id == b.id && a.first <= b.last && b.first <= a.last;
}

std::string text(const Problem& problem) {
  std::string text = problem.part + " " + std::to_string(problem.first);
  if (problem.last != problem.first) text += " to " + std::to_string(problem.last);
  if (problem.id != 0) text += " of memory " + std::to_string(problem.id);
  return text += ": " + problem.message;
}

}  // namespace

// One verification as it goes on.
struct Upkeep::Run {
  uint64_t job = 0;
  VerifyReply reply;
  uint64_t done_before = 0;   // rows and chunks of memories that are finished
  uint64_t total_before = 0;  // of these and of all to come, as far as is known
  std::string first_left;     // damage that is not mended

  // Adds problems as they are at the end.
  void add(std::vector<Problem> problems) {
    for (Problem& problem : problems) {
      ++reply.problem_count;
      if (problem.repaired) {
        ++reply.repaired_count;
      } else if (first_left.empty()) {
        first_left = text(problem);
      }
      if (reply.problems.size() >= problems_max) continue;
      spdlog::log(problem.repaired ? spdlog::level::warn : spdlog::level::err, "verify: {}{}", text(problem),
                  problem.repaired ? " (made again)" : "");
      reply.problems.push_back(std::move(problem));
    }
  }
};

Upkeep::Upkeep(Store& store, Jobs& jobs, ModelThread& model_thread, Encoder& encoder, const Tokenizer& tokenizer,
               std::function<void(MemoryId)> index, std::function<Expected<void>()> resume_erasures,
               std::function<void(const std::string&)> verified, std::function<int64_t()> now_us)
    : store_(store),
      jobs_(jobs),
      model_thread_(model_thread),
      encoder_(encoder),
      tokenizer_(tokenizer),
      index_(std::move(index)),
      resume_erasures_(std::move(resume_erasures)),
      verified_(std::move(verified)),
      now_us_(std::move(now_us)) {}

void Upkeep::interrupt() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
}

void Upkeep::stop() {
  interrupt();
  thread_.join();
}

void Upkeep::verify(VerifyRequest request, Done<VerifyReply> done) {
  if (running_.exchange(true))
    return done(fail(ErrorKind::busy, "verify the store: another verification goes on; recall stats shows how far"));
  const uint64_t job = jobs_.start("verify", request.memory.value_or(""), now_us_());
  if (!request.wait) {
    VerifyReply begun;
    begun.job = job;
    done(std::move(begun));
    done = {};
  }
  boost::asio::post(thread_, [this, job, request = std::move(request), done = std::move(done)]() mutable {
    Expected<VerifyReply> reply = run(request, job);
    running_ = false;  // before the answer, so that who has it may ask again
    if (!reply && reply.error().kind == ErrorKind::not_found && done) {
      jobs_.drop(job);  // a name that no memory has is told in the answer alone
    } else if (!reply) {
      jobs_.fail(job, reply.error().message);
    } else {
      jobs_.finish(job, reply->problem_count == 0 ? "no damage"
                                                  : std::to_string(reply->problem_count) + " damaged, of which " +
                                                        std::to_string(reply->repaired_count) + " were made again");
    }
    if (done) done(std::move(reply));
  });
}

Expected<VerifyReply> Upkeep::run(const VerifyRequest& request, uint64_t job) {
  Run run{.job = job, .reply = {}, .done_before = 0, .total_before = 0, .first_left = {}};
  if (request.memory) {
    RECALLD_TRY(const MemoryInfo memory, store_.memory(*request.memory));
    RECALLD_CHECK(verify_memory(memory.id, request.repair, run));
    // What records of it were is given back where the counters of segments tell that there is something.
    if (run.reply.repaired_count > 0) RECALLD_CHECK(store_.verify_store(true));
    return std::move(run.reply);
  }

  // First what all memories rest on: dropping damaged tables leaves rows that are missing, and those are made again.
  RECALLD_TRY(std::vector<Problem> of_store, store_.verify_store(request.repair));
  RECALLD_TRY(const StoreStats stats, store_.stats());
  run.total_before = stats.turns + stats.encoded_chunks;
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto ids, store_.all_memories(after, page_memories));
    for (const MemoryId id : ids) RECALLD_CHECK(verify_memory(id, request.repair, run));
    if (ids.size() < page_memories) break;
    after = ids.back();
  }
  if (request.repair) {
    RECALLD_CHECK(resume_erasures_());
    if (!of_store.empty() || run.reply.problem_count > 0) {
      // What was mended changed the counters of segments too.
      RECALLD_TRY(std::vector<Problem> left, store_.verify_store(true));
      for (Problem& problem : of_store) {
        problem.repaired = problem.repaired || std::ranges::none_of(left, [&](const Problem& still) {
                             return !still.repaired && same_damage(still, problem);
                           });
      }
    }
  }
  run.add(std::move(of_store));
  verified_(run.first_left);
  return std::move(run.reply);
}

Expected<void> Upkeep::verify_memory(MemoryId id, bool repair, Run& run) {
  const Store::Progress progress = [&](uint64_t done, uint64_t total) {
    jobs_.progress(run.job, run.done_before + done, std::max(run.total_before, run.done_before + total));
    return !stopped_;
  };
  RECALLD_TRY(Verification found, store_.verify(id, progress));
  if (stopped_) return std::unexpected(stopping());
  std::vector<Problem> problems = std::move(found.problems);
  if (repair) {
    for (int round = 0; round < mending_rounds_max; ++round) {
      const bool indexed = found.attributes.empty() && found.unindexed_turns + found.unindexed_chunks == 0;
      if (found.lost.empty() && found.untokenised.empty() && !found.rows && indexed) break;
      const auto mended = mend(id, found);
      if (!mended && mended.error().kind == ErrorKind::not_found) break;  // deleted meanwhile
      if (!mended && mended.error().kind != ErrorKind::busy) return mended;
      if (stopped_) return std::unexpected(stopping());
      RECALLD_TRY(found, store_.verify(id, progress));
      if (stopped_) return std::unexpected(stopping());
      for (Problem& problem : problems)
        problem.repaired =
            std::ranges::none_of(found.problems, [&](const Problem& still) { return same_damage(still, problem); });
    }
    model_thread_.encode(id);  // what stood still because of it goes on
  }
  if (found.unindexed_turns + found.unindexed_chunks > 0) index_(id);
  run.reply.memories += 1;
  run.reply.turns += found.turns;
  run.reply.chunks += found.chunks;
  run.reply.states += found.states;
  run.reply.bytes += found.bytes;
  run.reply.unindexed_chunks += found.unindexed_chunks;
  run.reply.unindexed_turns += found.unindexed_turns;
  run.done_before += found.turns + found.chunks;
  run.add(std::move(problems));
  return {};
}

Expected<void> Upkeep::mend(MemoryId id, const Verification& found) {
  if (found.rows) RECALLD_CHECK(store_.mend_rows(id));
  for (const uint64_t number : found.untokenised) {
    const auto again = [&]() -> Expected<void> {
      RECALLD_TRY(const StoredTurn turn, store_.turn(id, number));
      const Tokens tokens = tokenizer_.encode_turn(turn_prefix(turn.value), turn.value.content);
      return store_.mend_tokens(id, number, tokens.ids, tokens.ends);
    }();
    // A turn that became another number of tokens stays damaged, and the next verification says so.
    if (!again && again.error().kind != ErrorKind::corrupt) return again;
  }
  for (const Verification::Lost& lost : found.lost) {
    if (lost.to_drop()) {
      RECALLD_CHECK(store_.drop(lost));
      RECALLD_CHECK(index_words(lost.of));
    }
    if (lost.to_make()) RECALLD_CHECK(mend(lost));
  }
  if (!found.attributes.empty()) RECALLD_CHECK(store_.drop_attributes(id, found.attributes));
  if (!found.attributes.empty() || found.unindexed_turns > 0) RECALLD_CHECK(index_turns(id));
  if (found.unindexed_chunks > 0) {
    RECALLD_TRY(const MemoryInfo memory, store_.memory(id));
    RECALLD_CHECK(index_words(memory.serving));
    if (memory.next) RECALLD_CHECK(index_words(*memory.next));
  }
  return {};
}

Expected<void> Upkeep::index_turns(MemoryId id) {
  for (std::optional<uint64_t> turn = 0; turn;) {
    if (stopped_) return std::unexpected(stopping());
    RECALLD_TRY(turn, store_.index_turns(id, *turn));
  }
  return {};
}

Expected<void> Upkeep::index_words(const StreamInfo& of) {
  for (std::optional<uint64_t> page = 0; page;) {
    if (stopped_) return std::unexpected(stopping());
    RECALLD_TRY(page, store_.index_words(of, *page));
  }
  return {};
}

Expected<void> Upkeep::mend(const Verification::Lost& lost) {
  Encoder::Mending mending;
  mending.of = lost.of;
  mending.kv = {lost.chunks.begin(), lost.chunks.end()};
  mending.landmarks = {lost.landmarks.begin(), lost.landmarks.end()};
  mending.states = {lost.states.begin(), lost.states.end()};
  const uint64_t page_chunks = store_.page_chunks();
  while (!mending.done()) {
    RECALLD_TRY(const bool to_store, on_model_thread([&] { return encoder_.make_again(mending, page_chunks); }));
    if (!to_store) continue;
    auto stored = encoder_.store_again(mending);
    if (!stored && stored.error().kind != ErrorKind::corrupt) return stored;
    if (!stored) {  // of this page a landmark could not be made: the others of it wait for that
      mending.made.clear();
      mending.made_states.clear();
    }
  }
  return {};
}

// Runs a slice between searches, and waits for it.
template <class Work>
auto Upkeep::on_model_thread(Work work) -> decltype(work()) {
  std::promise<decltype(work())> result;
  auto future = result.get_future();
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return std::unexpected(stopping());
    model_thread_.search([&] { result.set_value(work()); });
  }
  return future.get();
}

}  // namespace recalld
