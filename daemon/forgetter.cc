#include "daemon/forgetter.h"

#include <spdlog/spdlog.h>

#include <utility>

#include <boost/asio/post.hpp>

#include "memstore/kv_file.h"

namespace recalld {
namespace {

constexpr size_t page_turns = 1'000;  // that a filter is shown at a time

}  // namespace

Forgetter::Forgetter(Store& store, Jobs& jobs, boost::asio::thread_pool& upkeep, std::function<void(MemoryId)> encode,
                     Follower follower, std::function<int64_t()> now_us)
    : store_(store),
      jobs_(jobs),
      upkeep_(upkeep),
      encode_(std::move(encode)),
      follower_(std::move(follower)),
      now_us_(std::move(now_us)) {}

Expected<void> Forgetter::resume() {
  RECALLD_TRY(const auto ids, store_.to_erase());
  for (const MemoryId id : ids) {
    {
      const std::lock_guard lock(mutex_);
      if (pending_.contains(id)) continue;
    }
    const auto memory = store_.memory(id);
    const std::string name = memory ? memory->name : "";
    enter(id, !memory, {.memory = name}, false, {});
  }
  return {};
}

// ---- Gone from every read

void Forgetter::forget(ForgetRequest request, Done<Receipt> done) {
  const auto begin = [&]() -> Expected<std::pair<Receipt, MemoryId>> {
    RECALLD_TRY(const MemoryInfo memory, store_.memory(request.memory));
    RECALLD_TRY(const auto turns, chosen(memory, request));
    RECALLD_TRY(const Forgotten forgotten,
                request.dry_run ? store_.find_turns(memory.id, turns) : store_.forget(memory.id, turns));
    return std::pair(receipt(memory.name, forgotten), memory.id);
  };
  Expected<std::pair<Receipt, MemoryId>> begun = begin();
  if (!begun) return done(std::unexpected(std::move(begun).error()));
  auto& [receipt, id] = *begun;
  receipt.dry_run = request.dry_run;
  receipt.complete = !request.dry_run && receipt.turn_count == 0;
  if (request.dry_run || receipt.complete) return done(std::move(receipt));
  encode_(id);  // what was being encoded may be another thing now
  enter(id, false, std::move(receipt), request.wait, std::move(done));
}

void Forgetter::remove(DeleteRequest request, Done<DeleteReply> done) {
  auto removed = store_.remove(request.memory);
  if (!removed) return done(std::unexpected(std::move(removed).error()));
  encode_(removed->id);  // finds it gone: drops its state and answers those who wait for it
  Receipt receipt{.memory = removed->name,
                  .turns = {},
                  .turn_count = removed->turns,
                  .tokens = removed->tokens,
                  .content_bytes = removed->content_bytes,
                  .chunks = removed->encoded_chunks,
                  .time_us = now_us_()};
  if (removed->next_turn > 0) receipt.turns = {{0, removed->next_turn - 1}};
  const MemoryId id = removed->id;
  enter(id, true, std::move(receipt), request.wait,
        [done = std::move(done), removed = *std::move(removed)](Expected<Receipt> erased) mutable {
          if (!erased) return done(std::unexpected(std::move(erased).error()));
          done(DeleteReply{std::move(removed), *std::move(erased)});
        });
}

// The turns that are meant.
Expected<std::vector<TurnRange>> Forgetter::chosen(const MemoryInfo& memory, const ForgetRequest& request) const {
  if (!request.filter) return request.turns;
  std::vector<TurnRange> ranges;
  for (uint64_t first = 0; first < memory.next_turn;) {
    RECALLD_TRY(const auto turns, store_.turns(memory.id, first, page_turns, page_bytes_max));
    if (turns.empty()) break;
    for (const StoredTurn& turn : turns) {
      if (!request.filter(turn.turn, turn.value)) continue;
      if (!ranges.empty() && ranges.back().last + 1 == turn.turn)
        ranges.back().last = turn.turn;
      else
        ranges.push_back({turn.turn, turn.turn});
    }
    first = turns.back().turn + 1;
  }
  return ranges;
}

Receipt Forgetter::receipt(const std::string& memory, const Forgotten& forgotten) const {
  return {.memory = memory,
          .turns = forgotten.turns,
          .turn_count = forgotten.turn_count,
          .tokens = forgotten.tokens,
          .content_bytes = forgotten.content_bytes,
          .chunks = forgotten.chunks,
          .time_us = now_us_()};
}

// ---- Erased

void Forgetter::enter(MemoryId id, bool whole_memory, Receipt receipt, bool wait, Done<Receipt> done) {
  const uint64_t job = jobs_.start(whole_memory ? "delete" : "forget", receipt.memory, now_us_());
  if (done && !wait) {
    Receipt begun = receipt;
    begun.job = job;
    done(std::move(begun));
    done = {};
  }
  {
    const std::lock_guard lock(mutex_);
    pending_[id].push_back({job, whole_memory, std::move(receipt), std::move(done)});
  }
  erase_when_swapped(id);
}

void Forgetter::encoded(const MemoryInfo& memory) {
  std::vector<uint64_t> jobs;
  {
    const std::lock_guard lock(mutex_);
    const auto pending = pending_.find(memory.id);
    if (pending == pending_.end()) return;
    for (const Pending& each : pending->second) jobs.push_back(each.job);
  }
  if (!memory.next) return erase_when_swapped(memory.id);
  for (const uint64_t job : jobs)
    jobs_.progress(job, memory.next->chunks - memory.next_first_chunk,
                   memory.next->complete_chunks() - memory.next_first_chunk);
}

void Forgetter::erase_when_swapped(MemoryId id) {
  const auto memory = store_.memory(id);
  if (memory && memory->next) return;  // encoded() will tell
  boost::asio::post(upkeep_, [this, id] { erase(id); });
}

void Forgetter::erase(MemoryId id) {
  std::vector<Pending> waiting;
  {
    const std::lock_guard lock(mutex_);
    const auto pending = pending_.find(id);
    if (pending == pending_.end() || stopped_) return;
    const auto memory = store_.memory(id);
    if (memory && memory->next) return;  // more has been forgotten since: one erasure serves all
    waiting = std::move(pending->second);
    pending_.erase(pending);
  }
  const auto erased = erase_everywhere(id, waiting);
  if (!erased)
    spdlog::error("erase what was forgotten of memory {}: {} (tried again at the next start, and by recall verify)", id,
                  erased.error().message);
  for (auto& [job, whole_memory, receipt, done] : waiting) {
    if (!erased) {
      jobs_.fail(job, erased.error().message);
      if (done)
        done(std::unexpected(
            Error(erased.error())
                .within("the turns are gone from every read, but not all of their bytes from the disk")));
      continue;
    }
    for (const Erasure::Segment& segment : erased->segments)
      receipt.files.push_back({"kv/" + segment_name(segment.segment), segment.records, segment.bytes});
    receipt.files.push_back({"catalog", receipt.turn_count, erased->catalog_bytes});
    receipt.complete = true;
    receipt.time_us = now_us_();
    jobs_.finish(job);
    if (done) done(std::move(receipt));
  }
}

Expected<Erasure> Forgetter::erase_everywhere(MemoryId id, const std::vector<Pending>& pending) {
  for (const Pending& each : pending) {
    if (each.whole_memory)
      RECALLD_CHECK(follower_.remove(each.receipt.memory));
    else
      RECALLD_CHECK(follower_.forget(each.receipt.memory, each.receipt.turns));
  }
  return store_.erase_forgotten(id);
}

void Forgetter::stop() {
  std::map<MemoryId, std::vector<Pending>> waiting;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    waiting.swap(pending_);
  }
  for (auto& [id, each] : waiting) {
    for (auto& [job, whole_memory, receipt, done] : each)
      if (done)
        done(fail(ErrorKind::busy,
                  "the turns are gone from every read, but the daemon stops before all of their bytes "
                  "are erased: the next start goes on with it"));
  }
}

}  // namespace recalld
