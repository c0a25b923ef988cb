#include "memstore/memory_table.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/bytes.h"
#include "base/quote.h"

namespace recalld {
namespace {

// Kept in RAM: so many records, each with at most so many gaps and extents. These are some hundred KiB at the most.
constexpr size_t recent_max = 16;
constexpr size_t recent_parts_max = 256;

size_t parts(const MemoryRecord& record) {
  const auto of = [](const Layout& layout) { return layout.gaps.gaps().size() + layout.extents.size(); };
  return of(record.serving.layout) + (record.next ? of(record.next->layout) : 0);
}

Error damaged_row(MemoryId id) {
  return {ErrorKind::corrupt, "read memory " + std::to_string(id) +
                                  ": one of its rows is missing or no such row; restore the store from a backup"};
}

}  // namespace

uint64_t Generation::end_position() const {
  const uint64_t tokens = encoding.chunks * chunk_tokens;
  return tokens == 0 ? 0 : layout.gaps.position_of(tokens - 1) + 1;
}

Expected<std::optional<MemoryId>> MemoryTable::find(std::string_view name) const {
  RECALLD_TRY(const auto row, catalog_.get(Family::memories, name_key(name)));
  if (!row) return std::nullopt;
  const auto id = decode_u64(*row);
  if (!id) return std::unexpected(damaged_row(0));
  return *id;
}

Expected<MemoryRecord> MemoryTable::record(std::string_view name) const {
  RECALLD_TRY(const auto id, find(name));
  auto record = id ? this->record(*id) : fail(ErrorKind::not_found, "");
  if (!record && record.error().kind == ErrorKind::not_found)
    return fail(ErrorKind::not_found, "there is no memory " + in_quotes(name) + "; recall memories lists them");
  return record;
}

Expected<MemoryRecord> MemoryTable::record(MemoryId id) const {
  MemoryRecord record{.id = id, .journal = {}, .serving = {}, .next = {}};
  std::optional<JournalRecord> journal;
  std::optional<EncodingRecord> next_encoding;
  std::optional<Layout> next_layout;
  record.serving.layout.extents = {{0, id}};
  // One cursor sees the rows as they were at one time.
  Catalog::Cursor rows = catalog_.cursor(Family::memories, row_key(id));
  RECALLD_TRY(bool found, rows.first());
  while (found) {
    bool known = false;
    const auto take = [&known](auto& into, auto decoded) {
      known = decoded.has_value();
      if (known) into = *std::move(decoded);
    };
    switch (rows.key().back()) {
      case journal_kind:
        take(journal, JournalRecord::decode(rows.value()));
        break;
      case encoding_kind:
        take(record.serving.encoding, EncodingRecord::decode(rows.value()));
        break;
      case layout_kind:
        take(record.serving.layout, Layout::decode(rows.value()));
        break;
      case next_encoding_kind:
        take(next_encoding, EncodingRecord::decode(rows.value()));
        break;
      case next_layout_kind:
        take(next_layout, Layout::decode(rows.value()));
        break;
      default:
        break;
    }
    if (!known) return std::unexpected(damaged_row(id));
    RECALLD_TRY(found, rows.next());
  }
  if (!journal)
    return fail(ErrorKind::not_found, "there is no memory of number " + std::to_string(id) + ": it has been deleted");
  record.journal = *std::move(journal);
  if (next_encoding.has_value() != next_layout.has_value()) return std::unexpected(damaged_row(id));
  if (next_layout) record.next = {*next_encoding, *std::move(next_layout)};
  return record;
}

Expected<std::shared_ptr<const MemoryRecord>> MemoryTable::recent(MemoryId id) const {
  const uint64_t version = catalog_.version();
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(recent_, id, [](const Recent& of) { return of.record->id; });
    if (found != recent_.end() && found->version == version) return found->record;
  }
  RECALLD_TRY(MemoryRecord read, record(id));
  auto record = std::make_shared<const MemoryRecord>(std::move(read));
  const std::lock_guard lock(mutex_);
  std::erase_if(recent_, [&](const Recent& of) { return of.record->id == id || of.version < version; });
  if (recent_.size() == recent_max) recent_.erase(recent_.begin());
  if (parts(*record) <= recent_parts_max) recent_.push_back({version, record});
  return record;
}

Expected<MemoryTable::Page> MemoryTable::list(std::string_view prefix, std::string_view after, size_t limit) const {
  Page page;
  if (limit == 0) return page;
  std::map<std::string, MemoryId> smallest;  // at most limit + 1
  Catalog::Cursor rows = catalog_.cursor(Family::memories, "");
  Expected<bool> found = rows.seek(row_key(1));
  for (; !found || *found; found = rows.next()) {
    if (!found && !rows.on_row()) return std::unexpected(std::move(found).error());
    if (found && rows.key().size() == 9 && rows.key().back() == journal_kind) {
      ByteReader key(rows.key());
      const MemoryId id = key.key64();
      auto journal = JournalRecord::decode(rows.value());
      if (!journal) continue;  // one that is damaged has no name; it does not hide the others, and verify() names it
      if (journal->name.starts_with(prefix) && journal->name > after) smallest.emplace(std::move(journal->name), id);
      if (smallest.size() > limit + 1) smallest.erase(std::prev(smallest.end()));
    }
  }
  for (const auto& [name, id] : smallest) {
    if (page.memories.size() == limit) break;
    page.memories.push_back(id);
    if (page.memories.size() == limit && smallest.size() > limit) page.next = name;
  }
  return page;
}

Expected<std::vector<MemoryId>> MemoryTable::waiting(MemoryId after, size_t limit) const {
  std::vector<MemoryId> ids;
  Catalog::Cursor rows = catalog_.cursor(Family::memories, memory_key(0, waiting_kind));
  Expected<bool> found = rows.seek(waiting_key(after + 1));
  while (ids.size() < limit) {
    if (!found && !rows.on_row()) return std::unexpected(found.error());
    if (found && !*found) break;
    ByteReader key(rows.key().substr(9));
    ids.push_back(key.key64());  // a damaged note is one all the same
    found = rows.next();
  }
  return ids;
}

Expected<std::vector<MemoryId>> MemoryTable::all(MemoryId after, size_t limit) const {
  std::vector<MemoryId> ids;
  Catalog::Cursor rows = catalog_.cursor(Family::memories, "");
  Expected<bool> found = rows.seek(row_key(after + 1));
  while (ids.size() < limit) {
    if (!found && !rows.on_row()) return std::unexpected(found.error());
    if (found && !*found) break;
    ByteReader key(rows.key());
    const MemoryId id = key.key64();
    if (rows.key().size() == 9 && rows.key().back() == journal_kind) ids.push_back(id);
    found = rows.next();
  }
  return ids;
}

void MemoryTable::stage_serving(MemoryId id, const Generation& serving, Catalog::Batch& rows) {
  rows.put(Family::memories, memory_key(id, encoding_kind), serving.encoding.encode());
  rows.put(Family::memories, memory_key(id, layout_kind), serving.layout.encode());
}

void MemoryTable::stage_next(MemoryId id, const std::optional<Generation>& next, Catalog::Batch& rows) {
  if (next) {
    rows.put(Family::memories, memory_key(id, next_encoding_kind), next->encoding.encode());
    rows.put(Family::memories, memory_key(id, next_layout_kind), next->layout.encode());
  } else {
    rows.remove(Family::memories, memory_key(id, next_encoding_kind));
    rows.remove(Family::memories, memory_key(id, next_layout_kind));
  }
}

}  // namespace recalld
