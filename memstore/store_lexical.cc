// The words of chunks: indexing them with the chunks, or later where an earlier version did not, and ranking by them.
#include <algorithm>
#include <utility>

#include "memstore/store_impl.h"

namespace recalld {

// ---- Indexing

Expected<std::vector<ChunkWords>> Store::Impl::words(const MemoryRecord& memory, const Generation& of, uint64_t first,
                                                     uint64_t end) const {
  WordReader reader;
  const auto read = [&](uint64_t from, uint64_t to) {
    return journal.words(memory.id, of.layout.gaps, memory.gaps(), from, to * chunk_tokens, reader);
  };
  auto words = read(first, end);
  if (words || words.error().kind != ErrorKind::corrupt) return words;
  // verify() names the turns that are damaged; all others are found.
  std::vector<ChunkWords> each;
  for (uint64_t chunk = first; chunk < end; ++chunk) {
    auto one = read(chunk, chunk + 1);
    if (!one && one.error().kind != ErrorKind::corrupt) return std::unexpected(std::move(one).error());
    each.push_back(one ? std::move(one->front()) : ChunkWords());
  }
  return each;
}

Expected<void> Store::Impl::stage_words(const MemoryRecord& memory, const Generation& of, uint64_t count,
                                        Catalog::Batch& rows) const {
  const uint64_t first = of.encoding.chunks;
  const auto make = [&](uint64_t from, uint64_t to) { return words(memory, of, from, to); };
  RECALLD_TRY(const std::vector<ChunkWords> made, make(first, first + count));
  return lexical.stage(of.stream(), first, made, make, rows);
}

Expected<std::optional<uint64_t>> Store::index_words(const StreamInfo& of, uint64_t page) {
  const std::lock_guard lock(impl_->encoding_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(of.memory));
  RECALLD_TRY(const Generation* const generation, Impl::find(record, of));
  RECALLD_CHECK(impl_->catalog->ready());
  RECALLD_CHECK(impl_->check_room());
  const uint64_t page_chunks = impl_->encodings.page_chunks();
  for (const Extent& extent : generation->layout.extents) {
    const uint64_t end = std::min(generation->layout.end_of(extent), generation->encoding.chunks);
    const uint64_t from = std::max(page, extent.first_chunk / page_chunks);
    if (from * page_chunks >= end) continue;
    RECALLD_TRY(const auto missing, impl_->lexical.first_missing(extent.stream, from, end));
    if (!missing) continue;
    const uint64_t first = *missing * page_chunks;
    RECALLD_TRY(const auto words, impl_->words(record, *generation, first, std::min(first + page_chunks, end)));
    Catalog::Batch rows(*impl_->catalog);
    impl_->lexical.stage_page(extent.stream, *missing, words, rows);
    RECALLD_CHECK(impl_->catalog->write(rows));
    return *missing + 1;
  }
  return std::nullopt;
}

// ---- Ranking

// The ranking borrows what stands before it.
struct Store::Impl::Begun final : LexicalBegun {
  // Whether it has what is asked for, but for `also`, of the memory as it is now.
  bool serves(const MemoryRecord& now, const LexicalQuery& other) const {
    return is_of(now) && query.text == other.text && query.chunks_max == other.chunks_max &&
           query.end_token == other.end_token && query.k == other.k && query.context_weight == other.context_weight &&
           (query.only == nullptr) == (other.only == nullptr) && (query.only == nullptr || only == *other.only);
  }
  bool is_of(const MemoryRecord& now) const {
    return now.id == record->id && now.serving.stream() == record->serving.stream() && now.gaps() == record->gaps();
  }

  std::shared_ptr<const MemoryRecord> record;  // shared with those who read by it
  std::string text;
  ChunkSet only;
  LexicalQuery query;  // borrows both, without `also`
  std::vector<ChunkWords> tail;
  std::vector<Unreadable> unreadable;  // of the tail
  LexicalIndex::Chunks chunks;
  std::unique_ptr<LexicalIndex::Ranked> ranked;
};

Expected<std::unique_ptr<LexicalBegun>> Store::begin_lexical(MemoryId id, const LexicalQuery& query) const {
  RECALLD_TRY(auto record, impl_->table.recent(id));
  return impl_->begin(std::move(record), query, WordReader().terms(query.text));
}

Expected<LexicalRanking> Store::lexical_top_k(MemoryId id, const LexicalQuery& query,
                                              std::unique_ptr<LexicalBegun> known) const {
  std::unique_ptr<Impl::Begun> begun(static_cast<Impl::Begun*>(known.release()));  // there are no others
  RECALLD_TRY(auto record, impl_->table.recent(id));
  if (begun && !begun->serves(*record, query)) begun.reset();
  std::vector<Term> terms;
  if (!begun) terms = WordReader().terms(query.text);
  while (true) {
    Expected<LexicalRanking> ranking;
    if (!begun) {
      auto anew = impl_->begin(record, query, terms);
      if (anew)
        begun = *std::move(anew);
      else
        ranking = std::unexpected(std::move(anew).error());
    }
    if (begun) {
      ranking = begun->ranked->with(query.also);
      if (ranking) std::ranges::move(begun->unreadable, std::back_inserter(ranking->unreadable));
    }
    begun.reset();
    RECALLD_TRY(auto now, impl_->table.recent(id));
    if (now->serving.stream() == record->serving.stream() && now->gaps() == record->gaps()) return ranking;
    record = std::move(now);
    if (terms.empty()) terms = WordReader().terms(query.text);
  }
}

Expected<std::unique_ptr<Store::Impl::Begun>> Store::Impl::begin(std::shared_ptr<const MemoryRecord> record,
                                                                 const LexicalQuery& query,
                                                                 std::span<const Term> terms) const {
  auto begun = std::make_unique<Begun>();
  begun->record = std::move(record);
  begun->text = query.text;
  if (query.only != nullptr) begun->only = *query.only;
  begun->query = query;
  begun->query.text = begun->text;
  begun->query.also = {};
  if (query.only != nullptr) begun->query.only = &begun->only;

  const MemoryRecord& memory = *begun->record;
  const Generation& of = memory.serving;
  const uint64_t stored = std::min(of.encoding.chunks, query.chunks_max);
  const uint64_t end_token = std::min(query.end_token, of.tokens(memory.journal));
  LexicalIndex::Chunks& chunks = begun->chunks;
  chunks.extents = of.layout.extents;
  chunks.stored = stored;
  chunks.only = begun->query.only;
  if (end_token > stored * chunk_tokens) {
    WordReader reader;
    auto read = journal.words(memory.id, of.layout.gaps, memory.gaps(), stored, end_token, reader);
    if (!read && read.error().kind != ErrorKind::corrupt) return std::unexpected(std::move(read).error());
    if (read)
      begun->tail = *std::move(read);
    else
      begun->unreadable.push_back({stored, (end_token - 1) / chunk_tokens, read.error().message});
  }
  chunks.tail = begun->tail;
  // Turns that are being forgotten are in the chunks still, and must not be found by their words.
  if (memory.next) {
    for (const Gaps::Gap& gap : memory.gaps().gaps()) {
      const uint64_t first = of.layout.gaps.token_of(gap.position), end = of.layout.gaps.token_of(gap.end());
      if (first == end) continue;
      const uint64_t first_chunk = first / chunk_tokens, last_chunk = (end - 1) / chunk_tokens;
      if (!chunks.hidden.empty() && first_chunk <= chunks.hidden.back().second)
        chunks.hidden.back().second = std::max(chunks.hidden.back().second, last_chunk);
      else
        chunks.hidden.emplace_back(first_chunk, last_chunk);
    }
  }
  RECALLD_TRY(begun->ranked, lexical.rank(chunks, terms, query.k, query.context_weight));
  return begun;
}

// ---- Verifying and mending

Encodings::Checked Store::Impl::check_words(const Generation& of, uint64_t chunk, uint64_t end) const {
  const Extent& extent = of.layout.extent_of(chunk);
  const bool last = extent == of.layout.extents.back() && end == of.encoding.chunks;
  LexicalIndex::Checked found = lexical.check(extent.stream, chunk, end, last);
  Encodings::Checked checked;
  checked.bytes = found.bytes;
  checked.unindexed = found.unindexed;
  const uint64_t page_chunks = encodings.page_chunks();
  for (auto& [page, cause] : found.pages) {
    const uint64_t first = page * page_chunks, behind = std::min(first + page_chunks, end);
    checked.lost.words.push_back(page);
    checked.problems.push_back(
        {.part = "words", .first = first, .last = behind - 1, .message = std::move(cause), .repairable = true});
  }
  if (found.strays) {
    checked.lost.strays = true;
    checked.problems.push_back({.part = "words",
                                .first = end,
                                .last = end,
                                .message = "rows of words stand behind the memory's last encoded chunk",
                                .repairable = true});
  }
  return checked;
}

Expected<void> Store::Impl::drop_words(const Generation& of, const Verification::Lost& lost) {
  for (size_t from = 0; from < lost.words.size();) {
    const uint64_t first = lost.words[from];
    const StreamId stream = of.layout.extent_of(first * encodings.page_chunks()).stream;
    size_t to = from + 1;
    const auto goes_on = [&](uint64_t page) {
      return page == lost.words[to - 1] + 1 && of.layout.extent_of(page * encodings.page_chunks()).stream == stream;
    };
    while (to < lost.words.size() && goes_on(lost.words[to])) ++to;
    RECALLD_CHECK(lexical.erase(stream, first, lost.words[to - 1] + 1, *catalog));
    from = to;
  }
  if (!lost.strays) return {};
  return lexical.erase(of.stream(), of.encoding.chunks / encodings.page_chunks(), LexicalIndex::all_pages, *catalog);
}

}  // namespace recalld
