// Verifying and mending a memory.
//
// A memory is read in slices. Each slice reads the memory's rows first and takes what they say as the measure of all
// other rows; where something does not fit, the memory's rows are read again, and the slice with them when forgetting,
// a swap or an erasure has changed them meanwhile. So no lock is held across the disk.
#include <algorithm>
#include <iterator>
#include <utility>

#include "memstore/store_impl.h"

namespace recalld {
namespace {

constexpr size_t slice_turns = 1'000;
constexpr uint64_t slice_chunks = 512;
constexpr int attempts_max = 100;  // of a slice that is changed all the time

// Adds a problem, or lengthens the last one when it goes on with the same cause.
void add(std::vector<Problem>& problems, Problem problem) {
  if (!problems.empty()) {
    Problem& last = problems.back();
    const bool numbered = problem.part != "memory" && problem.part != "operation";
    if (numbered && last.part == problem.part && last.message == problem.message &&
        last.repairable == problem.repairable && last.last < problem.first && problem.first - last.last <= 1) {
      last.last = problem.last;
      return;
    }
  }
  problems.push_back(std::move(problem));
}

bool same_generations(const MemoryRecord& a, const MemoryRecord& b) {
  const auto same = [](const Generation& x, const Generation& y) {
    return x.encoding.edition == y.encoding.edition && x.encoding.chunks == y.encoding.chunks &&
           x.encoding.state_chunks == y.encoding.state_chunks && x.encoding.generation == y.encoding.generation &&
           x.layout.extents == y.layout.extents;
  };
  if (!same(a.serving, b.serving) || a.next.has_value() != b.next.has_value()) return false;
  return !a.next || same(*a.next, *b.next);
}

}  // namespace

// ---- One memory

Expected<Verification> Store::verify(MemoryId id, const Progress& progress) const {
  Verification found;
  std::string name;
  const auto take = [&](std::vector<Problem> problems) {
    for (Problem& problem : problems) {
      problem.id = id;
      problem.memory = name;
      add(found.problems, std::move(problem));
    }
  };
  // The rows of the memory itself.
  const auto read_record = [&]() -> Expected<std::optional<MemoryRecord>> {
    auto record = impl_->table.record(id);
    if (record) {
      name = record->journal.name;
      return std::optional(*std::move(record));
    }
    found.ended = false;
    if (record.error().kind == ErrorKind::not_found) return std::optional<MemoryRecord>();
    if (record.error().kind != ErrorKind::corrupt) return std::unexpected(record.error());
    take({of_memory(record.error().message + "; nothing else of it can be told", false)});
    return std::optional<MemoryRecord>();
  };
  RECALLD_TRY(const std::optional<MemoryRecord> begin, read_record());
  if (!begin) return found;
  const uint64_t total =
      begin->journal.turns + begin->serving.encoding.chunks +
      (begin->next ? begin->next->encoding.chunks - begin->next->layout.extents.back().first_chunk : 0);
  uint64_t done = 0;
  const auto go_on = [&] {
    found.ended = !progress || progress(done, std::max(done, total));
    return found.ended;
  };

  const auto named = impl_->catalog->get(Family::memories, name_key(name));
  if (!named || !*named || decode_u64(**named) != id) {
    const auto now = impl_->table.record(id);  // it may have been deleted
    if (now) {
      found.rows = true;
      take({of_memory("the row of its name is damaged or missing", true)});
    }
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    // Read first, so that a marker that goes with the last chunk is not missed.
    const auto marker = impl_->catalog->get(Family::memories, waiting_key(id));
    const auto now = impl_->table.record(id);
    if (!now) break;
    const bool waits = now->next || Impl::info(*now).waiting_chunks() > 0;
    if (marker && (*marker || !waits)) break;
    if (attempt == 0 && marker) continue;  // it may have been appended in between
    found.rows = true;
    take({of_memory("the note that chunks of it wait is damaged or missing", true)});
    break;
  }
  if (begin->serving.encoding.chunks * chunk_tokens > begin->serving.tokens(begin->journal))
    take({of_memory("it has more encoded chunks than tokens; restore it from a backup", false)});

  // Turns and tokens.
  std::vector<Journal::Checked::Hole> holes;
  uint64_t turns = 0, content_bytes = 0;
  bool counted = true;
  int attempts = 0;
  for (std::optional<Journal::Place> at = Journal::Place{}; at;) {
    RECALLD_TRY(const auto record, read_record());
    if (!record) return found;
    auto checked =
        impl_->journal.check(id, record->journal, record->serving.layout.gaps, record->gaps(), *at, slice_turns);
    const auto after = impl_->table.record(id);
    const bool forgot = after && after->gaps() != record->gaps();
    if (!checked.problems.empty() || !checked.holes.empty()) {
      if (!after && after.error().kind == ErrorKind::not_found) break;
      if (forgot && ++attempts < attempts_max) continue;
    }
    if (forgot || begin->gaps() != record->gaps()) counted = false;
    found.turns += checked.turns;
    found.bytes += checked.bytes;
    turns += checked.turns;
    content_bytes += checked.content_bytes;
    counted = counted && checked.counted;
    done += checked.turns;
    take(std::move(checked.problems));
    std::ranges::move(checked.holes, std::back_inserter(holes));
    std::ranges::move(checked.untokenised, std::back_inserter(found.untokenised));
    at = checked.next;
    if (!at && counted && (turns != record->journal.turns || content_bytes != record->journal.content_bytes)) {
      // Turns that are missing without a trace, or a layout that leaves out the wrong tokens.
      if (holes.empty())
        take({of_memory("its turns are " + std::to_string(turns) + " of " + std::to_string(content_bytes) +
                            " bytes, and not " + std::to_string(record->journal.turns) + " of " +
                            std::to_string(record->journal.content_bytes) + "; restore it from a backup",
                        false)});
    } else if (!at && counted && !holes.empty()) {
      take({of_memory("its layout does not leave out the turns that were forgotten; restore it from a backup", false)});
      holes.clear();
    }
    if (!go_on()) return found;
  }
  for (const auto& hole : holes) {
    Problem problem = of_memory("", false);
    const Gaps& gaps = begin->serving.layout.gaps;
    const uint64_t first_token = gaps.token_of(hole.at.position), end_token = gaps.token_of(hole.at.end());
    problem.part = hole.turns ? "turn" : "tokens";
    problem.first = hole.turns ? hole.turns->first : first_token;
    problem.last = hole.turns ? hole.turns->last : std::max(first_token, end_token - 1);
    problem.message = "turns of tokens " + std::to_string(first_token) + " to " + std::to_string(end_token) +
                      " are missing with all their rows; restore them from a backup";
    take({problem});
  }

  // The attributes of turns.
  uint64_t indexed_turns = 0;
  attempts = 0;
  for (uint64_t turn = 0; impl_->attributes.adds();) {
    RECALLD_TRY(const auto record, read_record());
    if (!record) return found;
    RECALLD_TRY(const auto checked, impl_->attributes.check(*record, turn));
    const bool ends = !checked || checked->block.end == UINT64_MAX;
    if (!checked || !checked->cause.empty()) {
      const auto after = impl_->table.record(id);
      if (!after && after.error().kind == ErrorKind::not_found) break;
      const bool changed =
          after && (after->gaps() != record->gaps() || after->journal.next_turn != record->journal.next_turn);
      if (changed && ++attempts < attempts_max) continue;
    }
    if (checked) {
      found.bytes += checked->bytes;
      indexed_turns += checked->turns;
      if (!checked->cause.empty()) {
        found.attributes.push_back({checked->block.first, checked->block.end - 1});
        Problem problem = of_memory("the index of attributes: " + checked->cause, true);
        problem.part = "attributes";
        problem.first = checked->block.first;
        problem.last = std::min(checked->block.end, std::max(record->journal.next_turn, problem.first + 1)) - 1;
        take({problem});
      }
      turn = checked->block.end;
    }
    if (!ends) continue;
    // Turns that are damaged cannot be indexed.
    uint64_t damaged = 0;
    for (const Problem& problem : found.problems)
      damaged += problem.part == "turn" || problem.part == "attributes" ? problem.last - problem.first + 1 : 0;
    const uint64_t missing = record->journal.turns - std::min(record->journal.turns, indexed_turns);
    found.unindexed_turns = missing - std::min(missing, damaged);
    break;
  }

  // Operations.
  {
    RECALLD_TRY(const auto before, read_record());
    if (!before) return found;
    auto checked = impl_->journal.check_operations(id, before->journal);
    const auto after = impl_->table.record(id);
    const bool there = after || after.error().kind != ErrorKind::not_found;
    if (there) take(std::move(checked.problems));
    if (after && checked.counted &&
        (checked.operations < before->journal.operations || checked.operations > after->journal.operations)) {
      Problem problem = of_memory("there are " + std::to_string(checked.operations) + " operations of " +
                                      std::to_string(after->journal.operations) + "; restore it from a backup",
                                  false);
      problem.part = "operation";
      take({problem});
    }
  }

  // Goes through the chunks of a generation slice by slice. check(of, chunk) reads those from `chunk` on. Returns
  // whether it came to the end.
  struct Slice {
    Encodings::Checked checked;
    uint64_t end = 0;  // one past the last chunk that it has read
  };
  const auto each_slice = [&](bool next, Verification::Lost& lost, auto check) -> Expected<bool> {
    std::optional<StreamId> stream;
    bool ended = false;
    attempts = 0;
    for (uint64_t chunk = 0; !ended;) {
      RECALLD_TRY(const auto record, read_record());
      if (!record) return false;
      if (next && !record->next) return true;
      const Generation& of = next ? *record->next : record->serving;
      if (!stream) {
        stream = of.stream();
        if (next) chunk = of.layout.extents.back().first_chunk;
      } else if (stream != of.stream()) {
        return true;  // swapped: what serves now was verified as the next one, or will be the next time
      }
      auto [checked, end] = check(of, chunk);
      if (!checked.problems.empty()) {
        const auto after = impl_->table.record(id);
        if (!after && after.error().kind == ErrorKind::not_found) return false;
        if (after && !same_generations(*after, *record) && ++attempts < attempts_max) continue;
      }
      found.chunks += checked.chunks;
      found.states += checked.states;
      found.bytes += checked.bytes;
      done += checked.chunks;
      found.unindexed_chunks += checked.unindexed;
      take(std::move(checked.problems));
      const MemoryInfo info = Impl::info(*record);
      lost.of = next ? *info.next : info.serving;
      std::ranges::move(checked.lost.chunks, std::back_inserter(lost.chunks));
      std::ranges::move(checked.lost.landmarks, std::back_inserter(lost.landmarks));
      std::ranges::move(checked.lost.states, std::back_inserter(lost.states));
      std::ranges::move(checked.lost.needless, std::back_inserter(lost.needless));
      std::ranges::move(checked.lost.words, std::back_inserter(lost.words));
      lost.strays = lost.strays || checked.lost.strays;
      chunk = end;
      ended = end >= of.encoding.chunks;
      if (!go_on()) return false;
    }
    return true;
  };

  // Encodings: what serves, then what is made to take its place, as far as it has rows of its own. The words of all
  // pages of a span lie together, so they are read in slices of their own.
  const uint64_t slice = std::max(slice_chunks / page_chunks(), uint64_t{1}) * page_chunks();
  const uint64_t span = LexicalIndex::span_chunks(page_chunks());
  for (const bool next : {false, true}) {
    Verification::Lost lost;
    RECALLD_TRY(bool whole, each_slice(next, lost, [&](const Generation& of, uint64_t chunk) {
                  const uint64_t extent_end = of.layout.end_of(of.layout.extent_of(chunk));
                  const uint64_t end = std::max(chunk, std::min({extent_end, of.encoding.chunks, chunk + slice}));
                  return Slice{impl_->encodings.check(id, of, chunk, end), end};
                }));
    if (whole) {
      RECALLD_TRY(whole, each_slice(next, lost, [&](const Generation& of, uint64_t chunk) {
                    const uint64_t extent_end = of.layout.end_of(of.layout.extent_of(chunk));
                    const uint64_t span_end = (chunk / span + 1) * span;
                    const uint64_t end = std::max(chunk, std::min({extent_end, of.encoding.chunks, span_end}));
                    return Slice{impl_->check_words(of, chunk, end), end};
                  }));
    }
    found.lost.push_back(std::move(lost));
    if (!whole) return found;
  }
  std::erase_if(found.lost, [](const Verification::Lost& lost) { return !lost.to_make() && !lost.to_drop(); });
  return found;
}

Expected<std::vector<MemoryId>> Store::all_memories(MemoryId after, size_t limit) const {
  std::vector<MemoryId> ids;
  Catalog::Cursor rows = impl_->catalog->cursor(Family::memories, "");
  Expected<bool> found = rows.seek(row_key(after + 1));
  while (ids.size() < limit) {
    if (!found && !rows.on_row()) return std::unexpected(found.error());
    if (found && !*found) break;
    ByteReader key(rows.key());
    const MemoryId id = key.key64();
    ids.push_back(id);
    found = rows.seek(row_key(id + 1));
  }
  return ids;
}

// ---- Mending

uint64_t Store::page_chunks() const {
  return impl_->encodings.page_chunks();
}

Expected<void> Store::mend(const StreamInfo& of, std::span<const MendedChunk> chunks,
                           std::span<const StateCheckpoint> states) {
  const std::lock_guard lock(impl_->encoding_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(of.memory));
  RECALLD_TRY(const Generation* const generation, Impl::find(record, of));
  RECALLD_CHECK(impl_->catalog->ready());
  RECALLD_CHECK(impl_->encodings.release_refused());
  RECALLD_TRY(Encodings::Mended mended, impl_->encodings.write_again(chunks));
  Catalog::Batch rows(*impl_->catalog);
  auto stored = impl_->encodings.stage_again(of.memory, *generation, chunks, states, mended, rows);
  if (stored) stored = impl_->catalog->write(rows);
  if (!stored) {
    impl_->encodings.refused(mended.written);
    return stored;
  }
  return impl_->encodings.written_again(*generation, mended);
}

Expected<void> Store::drop(const Verification::Lost& lost) {
  const std::lock_guard reclaiming(impl_->reclaiming);
  const std::lock_guard lock(impl_->encoding_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(lost.of.memory));
  RECALLD_TRY(const Generation* const generation, Impl::find(record, lost.of));
  RECALLD_CHECK(impl_->drop_words(*generation, lost));
  Catalog::Batch rows(*impl_->catalog);
  const std::vector<KvPlace> places = impl_->encodings.stage_without(*generation, lost, rows);
  RECALLD_CHECK(impl_->catalog->write(rows));
  return impl_->encodings.written_without(*generation, places);
}

Expected<StoredTurn> Store::turn(MemoryId id, uint64_t number) const {
  return impl_->read(
      id, [&](const MemoryRecord& record) { return impl_->journal.turn(id, record.serving.layout.gaps, number); });
}

Expected<void> Store::mend_tokens(MemoryId id, uint64_t number, std::span<const uint32_t> ids,
                                  std::span<const uint32_t> ends) {
  const std::lock_guard forgetting(impl_->forgetting);
  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(id));
  RECALLD_TRY(const StoredTurn turn, impl_->journal.turn(id, record.gaps(), number));
  if (ids.size() != turn.tokens || ends.back() != stream_text(turn.value).size())
    return fail(ErrorKind::corrupt, "make the tokens of turn " + std::to_string(number) + " of memory " +
                                        std::to_string(id) + " again: they are " + std::to_string(ids.size()) +
                                        " and were " + std::to_string(turn.tokens) + "; restore it from a backup");
  Catalog::Batch rows(*impl_->catalog);
  Journal::stage_tokens(id, number, record.gaps().position_of(turn.first_token), ids, ends, rows);
  return impl_->catalog->write(rows);
}

Expected<void> Store::mend_rows(MemoryId id) {
  const std::lock_guard forgetting(impl_->forgetting);
  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(id));
  Catalog::Batch rows(*impl_->catalog);
  rows.put(Family::memories, name_key(record.journal.name), encode_u64(id));
  rows.put(Family::memories, waiting_key(id), "");
  return impl_->catalog->write(rows);
}

}  // namespace recalld
