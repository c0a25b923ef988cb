#include "daemon/forgetter.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <set>
#include <thread>
#include <utility>

#include <boost/asio/post.hpp>

#include "memstore/kv_file.h"

namespace recalld {
namespace {

constexpr size_t page_memories = 1'000;                                    // that are looked through at a time
constexpr std::chrono::milliseconds room_wait{100}, room_wait_max{5'000};  // for a catalog that found no room

}  // namespace

Forgetter::Forgetter(Store& store, Jobs& jobs, boost::asio::thread_pool& upkeep, std::function<void(MemoryId)> encode,
                     Follower follower, Reserve reserve, std::function<int64_t()> now_us)
    : store_(store),
      jobs_(jobs),
      upkeep_(upkeep),
      encode_(std::move(encode)),
      follower_(std::move(follower)),
      reserve_(std::move(reserve)),
      now_us_(std::move(now_us)) {
  reserve_.take();
}

Expected<void> Forgetter::resume() {
  RECALLD_TRY(const auto erasures, store_.to_erase());
  std::set<MemoryId> ids(erasures.begin(), erasures.end());
  // An erasure of what was forgotten before may have done for the rows of later turns too: then only the generation
  // that is being made tells that there will be something to erase.
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto unencoded, store_.unencoded(after, page_memories));
    for (const MemoryId id : unencoded) {
      const auto memory = store_.memory(id);
      if (memory && memory->next) ids.insert(id);
    }
    if (unencoded.size() < page_memories) break;
    after = unencoded.back();
  }
  for (const MemoryId id : ids) {
    {
      const std::lock_guard lock(mutex_);
      if (pending_.contains(id)) continue;
    }
    const auto memory = store_.memory(id);
    Receipt receipt{.memory = memory ? memory->name : ""};
    enter(id, {.whole_memory = !memory, .resumed = true, .receipt = std::move(receipt), .done = {}}, false);
  }
  return {};
}

// ---- Gone from every read

void Forgetter::forget(ForgetRequest request, Done<Receipt> done) {
  const auto begin = [&]() -> Expected<std::pair<Receipt, MemoryInfo>> {
    RECALLD_TRY(const MemoryInfo memory, store_.memory(request.memory));
    RECALLD_TRY(const auto turns, chosen(memory, request));
    bool needed_reserve = false;
    RECALLD_TRY(const Forgotten forgotten,
                request.dry_run ? store_.find_turns(memory.id, turns) : with_room<Forgotten>(needed_reserve, [&] {
                  return store_.forget(memory.id, turns);
                }));
    // There is no room to encode anew beside what serves. When this fails too, the encoder finds out by itself.
    if (needed_reserve && forgotten.rebuilding) static_cast<void>(store_.swap(memory.id, true));
    Receipt receipt = this->receipt(memory.name, forgotten);
    receipt.dry_run = request.dry_run;
    if (!request.dry_run && receipt.turn_count == 0) {
      // The turns may be among those of which something is left on disk, and who asks again wants to know.
      RECALLD_TRY(const bool unfinished, is_unfinished(memory));
      receipt.complete = !unfinished;
    }
    return std::pair(std::move(receipt), memory);
  };
  Expected<std::pair<Receipt, MemoryInfo>> begun = begin();
  if (!begun) return done(std::unexpected(std::move(begun).error()));
  auto& [receipt, memory] = *begun;
  if (request.dry_run || receipt.complete) return done(std::move(receipt));
  encode_(memory.id);  // what was being encoded may be another thing now
  enter(memory.id, {.created_us = memory.created_us, .receipt = std::move(receipt), .done = std::move(done)},
        request.wait);
}

// Writes, on a disk that turns out to be full with the room that the reserve leaves. The catalog looks for room again
// after a while only.
template <class Result>
Expected<Result> Forgetter::with_room(bool& needed_reserve, const std::function<Expected<Result>()>& write) {
  Expected<Result> written = write();
  if (written || written.error().kind != ErrorKind::full || !reserve_.give_up()) return written;
  needed_reserve = true;
  for (auto waited = room_wait; waited <= room_wait_max; waited += room_wait) {
    std::this_thread::sleep_for(room_wait);
    written = write();
    if (written || written.error().kind != ErrorKind::full) break;
  }
  return written;
}

// Whether something that was forgotten in the memory is not erased yet.
Expected<bool> Forgetter::is_unfinished(const MemoryInfo& memory) const {
  RECALLD_TRY(const MemoryInfo now, store_.memory(memory.id));
  if (now.next) return true;
  RECALLD_TRY(const auto erasures, store_.to_erase());
  return std::ranges::find(erasures, memory.id) != erasures.end();
}

void Forgetter::remove(DeleteRequest request, Done<DeleteReply> done) {
  // Which turns there are cannot be told afterwards; where some are damaged, all numbers that were given are named.
  const auto before = store_.memory(request.memory);
  if (!before) return done(std::unexpected(before.error()));
  auto turns = store_.find_turns(before->id, std::array{TurnRange{0, UINT64_MAX - 1}});
  if (!turns && turns.error().kind != ErrorKind::corrupt) return done(std::unexpected(std::move(turns).error()));
  bool needed_reserve = false;
  auto removed = with_room<MemoryInfo>(needed_reserve, [&] { return store_.remove(request.memory); });
  if (!removed) return done(std::unexpected(std::move(removed).error()));
  encode_(removed->id);  // finds it gone: drops its state and answers those who wait for it
  Receipt receipt{.memory = removed->name,
                  .turns = {},
                  .turn_count = removed->turns,
                  .tokens = removed->tokens,
                  .content_bytes = removed->content_bytes,
                  .chunks = removed->encoded_chunks,
                  .time_us = now_us_()};
  if (turns)
    receipt.turns = std::move(turns->turns);
  else if (removed->next_turn > 0)
    receipt.turns = {{0, removed->next_turn - 1}};
  const MemoryId id = removed->id;
  const int64_t created_us = removed->created_us;
  Done<Receipt> receipt_done = [done = std::move(done),
                                removed = *std::move(removed)](Expected<Receipt> erased) mutable {
    if (!erased) return done(std::unexpected(std::move(erased).error()));
    done(DeleteReply{std::move(removed), *std::move(erased)});
  };
  enter(
      id,
      {.whole_memory = true, .created_us = created_us, .receipt = std::move(receipt), .done = std::move(receipt_done)},
      request.wait);
}

// The turns that are meant.
Expected<std::vector<TurnRange>> Forgetter::chosen(const MemoryInfo& memory, const ForgetRequest& request) const {
  if (!request.filter) return request.turns;
  return store_.meant_turns(memory.id, *request.filter);
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

void Forgetter::enter(MemoryId id, Pending pending, bool wait) {
  Receipt begun = pending.receipt;
  Done<Receipt> tell;
  {
    const std::lock_guard lock(mutex_);
    std::vector<Pending>& here = pending_[id];
    const bool many = here.size() >= pending_max;
    const bool again = pending.receipt.turn_count == 0 && !pending.whole_memory && !pending.resumed;
    // One erasure serves all: the store knows what is to be erased.
    const bool joins = !here.empty() && (many || again);
    pending.job = joins ? here.back().job
                        : jobs_.start(pending.whole_memory ? "delete" : "forget", pending.receipt.memory, now_us_());
    begun.job = pending.job;
    if (!wait || many) tell = std::exchange(pending.done, {});
    if (many) {
      here.back().resumed = true;  // what follows the store looks for all that is missing
      here.back().told = false;
    } else if (!joins || pending.done) {
      here.push_back(std::move(pending));
    }
  }
  if (tell) tell(std::move(begun));
  erase_soon(id);
}

void Forgetter::encoded(const MemoryInfo& memory) {
  std::set<uint64_t> jobs;
  {
    const std::lock_guard lock(mutex_);
    const auto pending = pending_.find(memory.id);
    if (pending == pending_.end() || retries_.contains(memory.id)) return;
    for (const Pending& each : pending->second) jobs.insert(each.job);
  }
  if (!memory.next) return erase_soon(memory.id);
  for (const uint64_t job : jobs)
    jobs_.progress(job, memory.next->chunks - memory.next_first_chunk,
                   memory.next->complete_chunks() - memory.next_first_chunk);
}

void Forgetter::erase_soon(MemoryId id) {
  boost::asio::post(upkeep_, [this, id] { erase(id); });
}

// Erases what can be erased by now. The rows of turns need not wait for the encodings, but only when these have been
// swapped is it complete.
void Forgetter::erase(MemoryId id) {
  std::vector<Pending> waiting;
  {
    const std::lock_guard lock(mutex_);
    const auto pending = pending_.find(id);
    if (pending == pending_.end() || stopped_) return;
    waiting = std::move(pending->second);
    pending_.erase(pending);
  }
  // Seen before the erasure: what is forgotten after it began is for the next one.
  const auto memory = store_.memory(id);
  const bool swapped = memory ? !memory->next : memory.error().kind == ErrorKind::not_found;
  const auto erased = erase_everywhere(id, waiting);
  reserve_.take();
  if (!erased) return try_again(id, std::move(waiting), erased.error());
  if (memory) follower_.erased(id);
  for (Pending& each : waiting) {
    for (const Erasure::Segment& segment : erased->segments)
      each.receipt.files.push_back({"kv/" + segment_name(segment.segment), segment.records, segment.bytes});
    each.catalog_bytes += erased->catalog_bytes;
  }
  if (!swapped) {
    keep_waiting(id, std::move(waiting));
    // encoded() tells when it is; it may have told so while nobody seemed to wait.
    const auto now = store_.memory(id);
    if (now && !now->next) erase_soon(id);
    return;
  }
  if (auto cached = follower_.forget_cached(id); !cached) return try_again(id, std::move(waiting), cached.error());
  {
    const std::lock_guard lock(mutex_);
    failures_.erase(id);
  }
  for (Pending& each : waiting) {
    Receipt& receipt = each.receipt;
    receipt.files.push_back({"catalog", receipt.turn_count, each.catalog_bytes});
    receipt.complete = true;
    receipt.time_us = now_us_();
    jobs_.finish(each.job);
    if (each.done) each.done(std::move(receipt));
  }
}

void Forgetter::try_again(MemoryId id, std::vector<Pending> waiting, const Error& because) {
  const bool is_new = [&] {
    const std::lock_guard lock(mutex_);
    return std::exchange(failures_[id], because.message) != because.message;
  }();
  if (is_new)
    spdlog::error("erase what was forgotten of memory {}: {} (tried again until it works)", id, because.message);
  const Error told = Error(because).within(
      "the turns are gone from every read, but not all of their bytes are erased, which is tried again until it works");
  for (Pending& each : waiting) {
    jobs_.fail(each.job, told.message);  // until it has worked
    // What is given back first may be the room that the rest needs.
    const bool hopeless = because.kind != ErrorKind::full && because.kind != ErrorKind::busy;
    if (each.done && (hopeless || ++each.attempts >= attempts_max)) std::exchange(each.done, {})(std::unexpected(told));
  }
  keep_waiting(id, std::move(waiting));
  retry_later(id);
}

void Forgetter::keep_waiting(MemoryId id, std::vector<Pending> waiting) {
  {
    const std::lock_guard lock(mutex_);
    if (!stopped_) {
      std::vector<Pending>& here = pending_[id];
      std::ranges::move(here, std::back_inserter(waiting));
      here = std::move(waiting);
      return;
    }
  }
  answer_at_stop(waiting);
}

void Forgetter::retry_later(MemoryId id) {
  const std::lock_guard lock(mutex_);
  if (stopped_) return;
  boost::asio::steady_timer& timer = retries_.try_emplace(id, upkeep_).first->second;
  timer.expires_after(retry_pause);
  timer.async_wait([this, id](boost::system::error_code cancelled) {
    if (cancelled) return;
    {
      const std::lock_guard waited(mutex_);
      retries_.erase(id);
    }
    erase(id);
  });
}

Expected<Erasure> Forgetter::erase_everywhere(MemoryId id, std::vector<Pending>& pending) {
  for (Pending& each : pending) {
    if (each.told) continue;
    if (each.resumed)
      RECALLD_CHECK(follower_.forget_missing());
    else if (each.whole_memory)
      RECALLD_CHECK(follower_.remove(each.receipt.memory, each.created_us));
    else
      RECALLD_CHECK(follower_.forget(each.receipt.memory, each.created_us, each.receipt.turns));
    each.told = true;
  }
  return store_.erase_forgotten(id);
}

void Forgetter::stop() {
  std::map<MemoryId, std::vector<Pending>> waiting;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    waiting.swap(pending_);
    retries_.clear();  // cancels them
  }
  for (auto& [id, each] : waiting) answer_at_stop(each);
}

void Forgetter::answer_at_stop(std::vector<Pending>& waiting) {
  for (Pending& pending : waiting)
    if (pending.done)
      std::exchange(pending.done,
                    {})(fail(ErrorKind::busy,
                             "the turns are gone from every read, but the daemon stops before all of their bytes "
                             "are erased: the next start goes on with it"));
}

}  // namespace recalld
