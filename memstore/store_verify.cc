// Verifying and mending.
//
// A memory is read in slices. Each slice reads the memory's rows first and takes what they say as the measure of all
// other rows; where something does not fit, the memory's rows are read again, and the slice with them when forgetting,
// a swap or an erasure has changed them meanwhile. So no lock is held across the disk.
//
// What belongs to no memory alone is read as it was at one moment: cursors see the rows of the time when they were
// made, and the locks are held just while they are.
#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "memstore/row_walk.h"
#include "memstore/store_impl.h"

namespace recalld {
namespace {

constexpr size_t slice_turns = 1'000;
constexpr uint64_t slice_chunks = 512;
constexpr int attempts_max = 100;  // of a slice that is changed all the time

Problem of_memory(std::string message, bool repairable) {
  return {.id = 0,
          .memory = {},
          .part = "memory",
          .first = 0,
          .last = 0,
          .message = std::move(message),
          .repairable = repairable,
          .repaired = false};
}

Problem of_store(std::string part, uint64_t number, std::string message, bool repairable, bool repaired) {
  return {.id = 0,
          .memory = {},
          .part = std::move(part),
          .first = number,
          .last = number,
          .message = std::move(message),
          .repairable = repairable,
          .repaired = repaired};
}

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

  // Encodings: what serves, then what is made to take its place, as far as it has rows of its own.
  for (const bool next : {false, true}) {
    std::optional<StreamId> stream;
    bool ended = false;
    attempts = 0;
    for (uint64_t chunk = 0; !ended;) {
      RECALLD_TRY(const auto record, read_record());
      if (!record) return found;
      if (next && !record->next) break;
      const Generation& of = next ? *record->next : record->serving;
      if (!stream) {
        stream = of.stream();
        if (next) chunk = of.layout.extents.back().first_chunk;
        found.lost.emplace_back();
      } else if (stream != of.stream()) {
        break;  // swapped: what serves now was verified as the next one, or will be the next time
      }
      const Extent& extent = of.layout.extent_of(chunk);
      const uint64_t end = std::min({of.layout.end_of(extent), of.encoding.chunks,
                                     chunk + std::max(slice_chunks / page_chunks(), uint64_t{1}) * page_chunks()});
      auto checked = impl_->encodings.check(id, of, chunk, std::max(chunk, end));
      if (!checked.problems.empty()) {
        const auto after = impl_->table.record(id);
        if (!after && after.error().kind == ErrorKind::not_found) return found;
        if (after && !same_generations(*after, *record) && ++attempts < attempts_max) continue;
      }
      found.chunks += checked.chunks;
      found.states += checked.states;
      found.bytes += checked.bytes;
      done += checked.chunks;
      take(std::move(checked.problems));
      Verification::Lost& lost = found.lost.back();
      const MemoryInfo info = Impl::info(*record);
      lost.of = next ? *info.next : info.serving;
      std::ranges::move(checked.lost.chunks, std::back_inserter(lost.chunks));
      std::ranges::move(checked.lost.landmarks, std::back_inserter(lost.landmarks));
      std::ranges::move(checked.lost.states, std::back_inserter(lost.states));
      std::ranges::move(checked.lost.needless, std::back_inserter(lost.needless));
      lost.strays = lost.strays || checked.lost.strays;
      chunk = end;
      ended = end >= of.encoding.chunks;
      if (!go_on()) return found;
    }
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
  const std::lock_guard lock(impl_->encoding_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(lost.of.memory));
  RECALLD_TRY(const Generation* const generation, Impl::find(record, lost.of));
  Catalog::Batch rows(*impl_->catalog);
  const std::vector<KvPlace> places = impl_->encodings.stage_without(*generation, lost, rows);
  RECALLD_CHECK(impl_->catalog->write(rows));
  return impl_->encodings.release(places);
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

// ---- The store as a whole

// The tables of the catalog, whole. Those of families that can be made again are dropped: what they held is found
// missing then.
Expected<std::vector<Problem>> Store::Impl::check_tables(bool repair) {
  std::vector<Problem> problems;
  RECALLD_TRY(const std::vector<DamagedTable> damaged, catalog->verify());
  std::map<Family, std::vector<DamagedTable>> by_family;
  for (const DamagedTable& each : damaged) by_family[each.family].push_back(each);
  for (const auto& [family, tables] : by_family) {
    const bool derived = can_be_made_again(family);
    if (derived && repair) {
      const std::lock_guard encoding(encoding_mutex);  // no batch of these families is on its way
      RECALLD_CHECK(catalog->remake(family, tables));
    }
    for (const DamagedTable& each : tables)
      problems.push_back(of_store("table", 0, each.text() + (derived ? "" : "; restore the store from a backup"),
                                  derived, derived && repair));
  }
  return problems;
}

Expected<std::vector<Problem>> Store::verify_store(bool repair) {
  RECALLD_TRY(std::vector<Problem> problems, impl_->check_tables(repair));
  {
    const std::lock_guard lock(impl_->totals_mutex);
    std::ranges::move(std::exchange(impl_->found_on_opening, {}), std::back_inserter(problems));
  }
  RECALLD_CHECK(impl_->check_rows(repair, problems));
  return problems;
}

namespace {

// The numbers under which a family has rows, each told once.
template <class Each>
void each_owner(Catalog::Cursor& rows, Each each) {
  for (uint64_t at = 0;;) {
    const Expected<bool> found = rows.seek(row_key(at));
    if (!found && !rows.on_row()) return;  // verify() finds what of it belongs to a memory
    if (found && !*found) return;
    ByteReader key(rows.key());
    const uint64_t owner = key.key64();
    each(owner);
    at = owner + 1;
  }
}

}  // namespace

Expected<void> Store::Impl::check_rows(bool repair, std::vector<Problem>& problems) {
  // What there is, at one moment, and what the store takes it to be.
  std::unique_lock encoding(encoding_mutex);
  std::unique_lock journal_lock(journal_mutex);
  Catalog::Cursor memories = catalog->cursor(Family::memories, "");
  Catalog::Cursor chunks = catalog->cursor(Family::chunks, "");
  Catalog::Cursor counters = catalog->cursor(Family::counters, "");
  std::map<Family, Catalog::Cursor> owned;
  for (const Family family : {Family::chunks, Family::landmarks, Family::states, Family::turns, Family::tokens,
                              Family::operations, Family::postings})
    owned.emplace(family, catalog->cursor(family, ""));
  const JournalTotals told = totals;
  const uint64_t told_chunks = encoded_chunks, told_next = next_id;
  const std::map<uint32_t, uint32_t> told_live = encodings.live();
  const KvPlace told_place = encodings.next_place();
  std::ranges::move(encodings.check_segments(), std::back_inserter(problems));
  journal_lock.unlock();
  encoding.unlock();
  std::map<Family, std::vector<uint64_t>> owners;
  for (auto& [family, rows] : owned)
    each_owner(rows, [&owners, family = family](uint64_t owner) { owners[family].push_back(owner); });
  owned.clear();

  // The memories.
  JournalTotals counted;
  uint64_t counted_chunks = 0, greatest = 0;
  bool whole = true;         // no row of a memory is damaged
  std::set<uint64_t> known;  // memories and streams that may have rows
  std::set<MemoryId> there, headless;
  std::vector<std::pair<std::string, MemoryId>> names;
  std::vector<std::string> removed;  // damaged rows that nothing needs
  MemoryRecord memory;
  std::optional<Generation> next;
  bool has_journal = false, has_rows = false;
  const auto finish = [&] {
    if (!has_rows) return;
    known.insert(memory.id);
    greatest = std::max(greatest, memory.id);
    const auto streams = [&](const Layout& layout) {
      for (const Extent& extent : layout.extents) {
        known.insert(extent.stream);
        greatest = std::max(greatest, extent.stream);
      }
    };
    streams(memory.serving.layout);
    if (next) streams(next->layout);
    if (has_journal) {
      ++counted.memories;
      counted.turns += memory.journal.turns;
      counted.tokens += memory.journal.next_position - (next ? next->layout : memory.serving.layout).gaps.tokens();
      there.insert(memory.id);
    } else {
      headless.insert(memory.id);
    }
    counted_chunks += memory.serving.encoding.chunks;
  };
  Expected<bool> found = memories.first();
  for (; !found || *found; found = memories.next()) {
    if (!found && !memories.on_row()) return std::unexpected(std::move(found).error());
    ByteReader key(memories.key());
    const uint64_t id = key.key64();
    const auto value = found ? std::optional(memories.value()) : std::nullopt;
    if (id == 0) {
      const char kind = static_cast<char>(key.u8());
      if (kind == name_kind) {
        const auto named = value ? decode_u64(*value) : std::nullopt;
        if (named) names.emplace_back(std::string(memories.key()), *named);
        // Where it is damaged, the memory that has lost its name is reported.
        whole = whole && named;
      } else if (kind == waiting_kind && !value) {
        problems.push_back(of_store("memory", 0, "a note of what waits does not match its checksum", true, false));
        problems.back().id = key.key64();
        removed.emplace_back(memories.key());
      } else if (kind == erasure_kind) {
        greatest = std::max(greatest, key.key64());
        const auto erasure = value ? ErasureRecord::decode(*value) : std::nullopt;
        if (erasure) {
          known.insert(erasure->memory);
          known.insert(erasure->stream);
        } else {
          whole = false;
          problems.push_back(
              of_store("memory", 0, "the note of an erasure is damaged: what it was to erase may be on the disk still",
                       false, false));
        }
      }
      continue;
    }
    if (!has_rows || id != memory.id) {
      finish();
      memory = {.id = id, .journal = {}, .serving = {}, .next = {}};
      memory.serving.layout.extents = {{0, id}};
      next.reset();
      has_journal = false;
      has_rows = true;
    }
    const auto decoded = [&](auto& into, auto row) {
      if (row) into = *std::move(row);
      whole = whole && row;
    };
    const char kind = memories.key().back();
    if (kind == journal_kind) has_journal = true;
    if (!value) {
      whole = false;
    } else if (kind == journal_kind) {
      decoded(memory.journal, JournalRecord::decode(*value));
    } else if (kind == encoding_kind) {
      decoded(memory.serving.encoding, EncodingRecord::decode(*value));
    } else if (kind == layout_kind) {
      decoded(memory.serving.layout, Layout::decode(*value));
    } else if (kind == next_layout_kind) {
      next.emplace();
      decoded(next->layout, Layout::decode(*value));
    }
  }
  finish();
  for (const MemoryId id : headless) {
    problems.push_back(of_memory("its first row is missing, with its name; restore it from a backup", false));
    problems.back().id = id;
    whole = false;
  }
  for (const auto& [key, id] : names) {
    if (there.contains(id)) continue;
    if (headless.contains(id)) continue;
    problems.push_back(of_memory("its name is there, but none of its own rows; restore it from a backup", false));
    problems.back().id = id;
    whole = false;
  }
  if (whole) {  // else whose rows they are cannot be told
    for (const auto& [family, numbers] : owners) {
      for (const uint64_t number : numbers) {
        greatest = std::max(greatest, number);
        if (known.contains(number)) continue;
        problems.push_back(of_memory("rows of " + std::string(recalld::name(family)) + " belong to no memory", false));
        problems.back().id = number;
      }
    }
  }

  // The chunks, by segment.
  std::map<uint32_t, uint32_t> live;
  bool whole_chunks = true;
  KvPlace last;
  found = chunks.first();
  for (; !found || *found; found = chunks.next()) {
    if (!found && !chunks.on_row()) {
      whole_chunks = false;
      break;
    }
    const auto entry = found ? decode_chunk_entry(chunks.value()) : std::nullopt;
    whole_chunks = whole_chunks && entry;
    if (!entry) continue;
    ++live[entry->segment];
    last = std::max(last, KvPlace{entry->segment, entry->slot});
  }

  // The counters: what was counted differs from what is told by as much as what is told now is wrong.
  std::set<std::string> good;
  found = counters.first();
  for (; !found || *found; found = counters.next()) {
    if (!found && !counters.on_row()) break;
    if (found) good.emplace(counters.key());
  }
  const auto differs = [&](std::string_view key, uint64_t number, bool sound, const std::string& what) {
    if (sound && good.contains(std::string(key))) return false;
    problems.push_back(of_store("counter", number, what, true, repair));
    return true;
  };
  const bool any = counted.memories > 0;
  bool changed = any && differs(next_id_key, 0, told_next > greatest,
                                "the next number of a memory is " + std::to_string(told_next) + ", and " +
                                    std::to_string(greatest) + " is in use");
  if (whole && any) {
    const bool sound =
        told.memories == counted.memories && told.turns == counted.turns && told.tokens == counted.tokens;
    changed |= differs(journal_totals_key, 0, sound, "the sums of memories, turns and tokens do not fit the memories");
  }
  if (whole && (counted_chunks > 0 || told_chunks > 0))
    changed |= differs(
        encoding_totals_key, 0, told_chunks == counted_chunks,
        "the sum of chunks is " + std::to_string(told_chunks) + ", and there are " + std::to_string(counted_chunks));
  bool segments_differ = false;
  if (whole_chunks) {
    for (const auto& [segment, count] : told_live) live.try_emplace(segment, 0);
    for (const auto& [segment, count] : live) {
      const auto known_count = told_live.find(segment);
      const uint32_t told_count = known_count == told_live.end() ? 0 : known_count->second;
      if (count == 0 && told_count == 0) continue;
      if (differs(segment_key(segment), segment, told_count == count,
                  "segment " + std::to_string(segment) + " is said to hold " + std::to_string(told_count) +
                      " records, and " + std::to_string(count) + " are in use")) {
        segments_differ = true;
        changed = true;
      }
    }
    if (!live.empty() && last.slot + last.segment > 0 && !(last < told_place))
      problems.push_back(of_store("counter", 0,
                                  "the next record goes to a place that is in use; restore the store from a backup",
                                  false, false));
  }
  if (repair) {
    const std::lock_guard again(encoding_mutex);
    for (const Problem& problem : problems)
      if (problem.part == "segment") RECALLD_CHECK(encodings.mend_segment(static_cast<uint32_t>(problem.first)));
  }
  if (!repair || (!changed && removed.empty())) return {};

  const std::lock_guard encoding_again(encoding_mutex);
  const std::lock_guard journal_again(journal_mutex);
  const std::lock_guard sums(totals_mutex);
  next_id = std::max(next_id, greatest + 1);
  if (whole) {
    totals.memories += counted.memories - told.memories;
    totals.turns += counted.turns - told.turns;
    totals.tokens += counted.tokens - told.tokens;
    encoded_chunks += counted_chunks - told_chunks;
  }
  Catalog::Batch rows(*catalog);
  rows.put(Family::counters, next_id_key, encode_u64(next_id));
  rows.put(Family::counters, journal_totals_key, totals.encode());
  rows.put(Family::counters, encoding_totals_key, encode_u64(encoded_chunks));
  rows.put(Family::counters, next_place_key, encode(encodings.next_place()));
  for (const std::string& key : removed) rows.put(Family::memories, key, "");
  RECALLD_CHECK(catalog->write(rows));
  if (segments_differ) {
    RECALLD_CHECK(encodings.release_unnamed(*catalog));
    RECALLD_CHECK(encodings.remove_empty_segments(*catalog));
  }
  for (Problem& problem : problems)
    if (problem.part == "memory" && problem.repairable) problem.repaired = true;
  return {};
}

}  // namespace recalld
