// Verifying what belongs to no memory alone: tables, segments, names, rows of no memory, and the store's counters.
//
// It is read as it was at one moment: cursors see the rows of the time when they were made, and the locks are held just
// while they are.
#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "memstore/store_impl.h"

namespace recalld {
namespace {

Problem of_store(std::string part, uint64_t number, std::string message, bool repairable, bool repaired) {
  return {.part = std::move(part),
          .first = number,
          .last = number,
          .message = std::move(message),
          .repairable = repairable,
          .repaired = repaired};
}

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
      // No batch of these families is on its way.
      const std::lock_guard encoding(encoding_mutex);
      std::unique_lock journal_lock(journal_mutex, std::defer_lock);
      if (family == Family::attributes) journal_lock.lock();
      RECALLD_CHECK(catalog->remake(family, tables));
      encodings.forget_entries();
    }
    for (const DamagedTable& each : tables)
      problems.push_back(of_store("table", 0, each.text() + (derived ? "" : "; restore the store from a backup"),
                                  derived, derived && repair));
  }
  return problems;
}

Expected<std::vector<Problem>> Store::verify_store(bool repair) {
  std::unique_lock reclaiming(impl_->reclaiming, std::defer_lock);
  if (repair) reclaiming.lock();
  RECALLD_TRY(std::vector<Problem> problems, impl_->check_tables(repair));
  {
    const std::lock_guard lock(impl_->totals_mutex);
    std::ranges::move(std::exchange(impl_->found_on_opening, {}), std::back_inserter(problems));
  }
  RECALLD_CHECK(impl_->check_rows(repair, problems));
  return problems;
}

Expected<void> Store::Impl::check_rows(bool repair, std::vector<Problem>& problems) {
  // What there is, at one moment, and what the store takes it to be.
  std::unique_lock encoding(encoding_mutex);
  std::unique_lock journal_lock(journal_mutex);
  Catalog::Cursor memories = catalog->cursor(Family::memories, "");
  Catalog::Cursor chunks = catalog->cursor(Family::chunks, "");
  Catalog::Cursor counters = catalog->cursor(Family::counters, "");
  std::map<Family, Catalog::Cursor> owned;
  for (const Family family : {Family::chunks, Family::landmarks, Family::states, Family::turns, Family::tokens,
                              Family::operations, Family::postings, Family::attributes})
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
