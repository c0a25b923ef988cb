// The front door of the store: the journal of turns, the encodings of chunks, and the way back to both.
//
// Everything that the journal holds is durable when append() returns. Encodings follow later through put(); they can
// always be made again from the journal. Any thread may call any function; calls block on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "kernels/landmark_topk.h"
#include "kernels/worker_pool.h"
#include "memstore/attribute.h"
#include "memstore/backup.h"
#include "memstore/chunk.h"
#include "memstore/chunk_set.h"
#include "memstore/file_io.h"
#include "memstore/turn.h"

namespace recalld {

struct CatalogFiles;  // memstore/catalog.h
class TurnSelection;  // memstore/turn_selection.h

struct StoreOptions {
  RecordShape shape;
  uint64_t memory_budget_bytes = uint64_t{256} << 20;  // landmarks, block cache, memtables and buffers together
  // Makes the file layer of the segments; unset: io_uring where it works, else POSIX (open_file_io).
  std::function<Expected<std::unique_ptr<FileIo>>()> file_io;
  // Reads the metadata of turns for their index. Unset: turns are not indexed, and filters read the rows of all.
  MetadataReader read_metadata = {};

  // For tests: the files that the catalog sees (borrowed; none: the operating system's), and segments of another size
  // than 64 MiB, the same at every open of a store.
  const CatalogFiles* catalog_files = nullptr;
  uint64_t segment_bytes = uint64_t{64} << 20;
};

// A turn with its tokens. ids[i] covers the bytes [ends[i - 1], ends[i]) of stream_text(turn), ends[-1] being 0;
// ends never falls and its last element is the length of the text.
struct NewTurn {
  Turn turn;
  std::vector<uint32_t> ids;            // token ids
  std::vector<uint32_t> ends;           // [ids.size()] byte offsets
  std::optional<uint64_t> number = {};  // that the turn gets: at least the memory's next_turn, which it is when unset
};

struct AppendBatch {
  std::string memory;          // made when it does not exist
  std::vector<NewTurn> turns;  // not empty
  std::string operation_id;    // empty: none
  Hash128 operation_digest{};  // of what was asked for, to recognise other content under the same operation_id
  int64_t now_us = 0;          // the daemon's clock: creation and update time of the memory
};

struct Appended {
  MemoryId id = 0;
  uint64_t first_turn = 0;
  uint64_t last_turn = 0;
  uint64_t tokens = 0;     // tokens of these turns
  uint64_t end_token = 0;  // tokens of the memory up to and with the last of these turns
  bool repeated = false;   // the operation_id had been seen: this is the first reply, nothing was written
};

// One generation of a memory's encodings, as the encoder works on it.
struct StreamInfo {
  MemoryId memory = 0;
  StreamId stream = 0;
  uint64_t edition = 0;  // grows when turns of it that are not encoded yet are forgotten
  uint64_t tokens = 0;
  uint64_t chunks = 0;  // encoded

  uint64_t complete_chunks() const { return tokens / chunk_tokens; }
  uint64_t waiting_chunks() const { return complete_chunks() - chunks; }
};

struct MemoryInfo {
  MemoryId id = 0;
  std::string name;
  uint64_t turns = 0;           // turns that there are
  uint64_t next_turn = 0;       // the number that the next appended turn gets
  uint64_t tokens = 0;          // of the generation that is searched
  uint64_t encoded_chunks = 0;  // chunks that have a landmark and K/V on disk
  uint64_t content_bytes = 0;   // bytes of all contents
  int64_t created_us = 0;
  int64_t updated_us = 0;  // of the last append
  StreamInfo serving;      // the generation that is searched
  // While forgotten turns are still in what is searched: the generation without them that is being encoded beside it.
  std::optional<StreamInfo> next;
  uint64_t next_first_chunk = 0;  // where that one began

  uint64_t complete_chunks() const { return tokens / chunk_tokens; }
  uint64_t waiting_chunks() const { return complete_chunks() - encoded_chunks; }
};

struct StoredTurn {
  uint64_t turn = 0;  // its number in the memory
  Turn value;
  uint64_t first_token = 0;  // in the memory's stream
  uint64_t tokens = 0;
};

// Consecutive tokens of a memory as text, and the turns that they come from.
struct Passage {
  uint64_t first_token = 0;
  uint64_t end_token = 0;
  std::string text;  // cut verbatim from the journal; a character belongs to its first token
  struct Source {
    uint64_t turn = 0;
    Role role = Role::user;
    std::optional<std::string> name;
    int64_t time_us = 0;
    // Whether it has text before the passage, or behind it, the newline at its end aside.
    bool cut_before = false;
    bool cut_after = false;
  };
  std::vector<Source> turns;  // in order; at least one token of each lies in the passage
};

// How a fetch is waited for. Its functions are called on the thread that fetches.
struct FetchWait {
  ReadWait reads = {};
  // chunks[i] is in its place and is what was stored: told as each arrives, while others are on their way. Where the
  // memory was changed meanwhile all are read again, and this is not told of any of them a second time: what was told
  // is good for certain only if the fetch succeeds with all of them told.
  std::function<void(size_t i)> whole = {};
};

// The recurrent state after the first `chunks` chunks of a memory.
struct StateCheckpoint {
  uint64_t chunks = 0;
  std::string bytes;  // [state_bytes]
};

// What forgetting takes away.
struct Forgotten {
  MemoryId id = 0;
  std::vector<TurnRange> turns{};  // that there were
  uint64_t turn_count = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
  uint64_t chunks = 0;      // encoded ones that hold any of the turns or come after one that does
  bool rebuilding = false;  // they are encoded anew: MemoryInfo::next
};

// From where the bytes of forgotten turns and deleted memories were erased.
struct Erasure {
  struct Segment {
    uint32_t segment = 0;
    uint64_t records = 0;
    uint64_t bytes = 0;
  };
  std::vector<Segment> segments;
  uint64_t catalog_bytes = 0;  // of tables that were rewritten or dropped
};

// An append that carried an operation_id, as an export keeps it.
struct StoredOperation {
  std::string id;
  Hash128 digest{};
  uint64_t first_turn = 0;
  uint64_t last_turn = 0;
  uint64_t tokens = 0;
};

// Something on disk that is not what was written.
struct Problem {
  MemoryId id = 0;       // 0: of no memory, or of one that cannot be told
  std::string memory{};  // its name
  std::string part{};    // turn, tokens, operation, memory, chunk, kv, landmark, words, attributes, state, table,
                         // segment, counter
  uint64_t first = 0;    // the number of the turn, token or chunk
  uint64_t last = 0;     // and of the last one of a range
  std::string message{};
  bool repairable = false;  // it can be made again from the journal
  bool repaired = false;
};

// Chunks that damage keeps from being considered.
struct Unreadable {
  uint64_t first = 0;
  uint64_t last = 0;
  std::string message;
};

// What the verification of a memory found.
struct Verification {
  uint64_t turns = 0;
  uint64_t chunks = 0;  // entries, landmarks and K/V
  uint64_t states = 0;
  uint64_t bytes = 0;                 // read and checked
  std::vector<Problem> problems;      // neighbours with one cause are one problem
  std::vector<uint64_t> untokenised;  // turns that are whole and whose tokens are not: for mend_tokens()

  // What is to be made again of one generation: for mend().
  struct Lost {
    StreamInfo of;
    std::vector<uint64_t> chunks;     // by number, whose entry or K/V is damaged
    std::vector<uint64_t> landmarks;  // by number, chunks whose landmark is
    std::vector<uint64_t> states;     // by number, chunks that each covers, which must be there
    std::vector<uint64_t> needless;   // likewise, damaged ones that nothing needs: for drop()
    std::vector<uint64_t> words;      // pages whose rows of words are damaged or missing: for drop() and index_words()
    bool strays = false;              // rows stand behind the last chunk: for drop()

    bool to_make() const { return !chunks.empty() || !landmarks.empty() || !states.empty(); }
    bool to_drop() const { return !needless.empty() || strays || !words.empty(); }
  };
  std::vector<Lost> lost;
  std::vector<TurnRange> attributes;  // turns whose rows of attributes are damaged: for drop_attributes()
  bool rows = false;                  // for mend_rows()
  // What is no damage, because an earlier version stored it so: what index_words() and index_turns() are for.
  uint64_t unindexed_chunks = 0;  // by their words
  uint64_t unindexed_turns = 0;   // by their attributes
  bool ended = true;              // false: it was stopped, or the memory was removed
};

// What the words of a query make of a chunk: BM25 of the chunk, and of it with its two neighbours.
struct LexicalScore {
  uint64_t chunk = 0;
  float bm25 = 0;
  float context = 0;
  bool operator==(const LexicalScore&) const = default;
};

// Which turns of a memory are meant.
struct TurnQuery {
  // Judges a turn by everything but its content, which is not read. Called on the thread that asks.
  std::function<bool(uint64_t number, const Turn& turn)> matches;
  // The same, for turns that are indexed; null: `matches` judges them all. It is never changed.
  std::shared_ptr<const TurnCondition> condition = {};
  Hash128 key{};  // the same for no other meaning: what was selected by it is known again
  // No turn is meant outside of [first_turn, end_turn).
  uint64_t first_turn = 0;
  uint64_t end_turn = UINT64_MAX;
};

// Chunks of the serving generation, the open one included.
struct SelectedChunks {
  ChunkSet chunks;
  uint64_t end_token = 0;              // turns up to here were looked at
  std::vector<Unreadable> unreadable;  // chunks of turns that damage keeps from being judged
};

struct LexicalQuery {
  std::string_view text;
  uint64_t chunks_max = UINT64_MAX;     // of the encoded chunks, so many
  uint64_t end_token = 0;               // and behind these, chunks up to here, by their text
  size_t k = 0;                         // chunks that are wanted
  float context_weight = 1;             // they are ranked by bm25 + context_weight · context
  std::span<const uint64_t> also = {};  // chunks whose scores are wanted, too
  const ChunkSet* only = nullptr;       // others are not among the best
};

struct LexicalRanking {
  std::vector<LexicalScore> best;      // best first; those alone that score above 0
  std::vector<LexicalScore> also;      // in the order of the query
  uint64_t unindexed_chunks = 0;       // encoded by an earlier version, and their words are not indexed yet
  std::vector<Unreadable> unreadable;  // left out
};

// A ranking by words of which the best are found, and what was read for it: Store::begin_lexical(). It is made and used
// up by one thread at a time, and must not outlive its store.
class LexicalBegun {
 public:
  virtual ~LexicalBegun() = default;
};

// What is written again of a chunk.
struct MendedChunk {
  uint64_t chunk = 0;
  EncodedChunkView encoded;
  bool kv = true;        // with its entry
  bool landmark = true;  // else the one that is stored is whole
};

struct StoreStats {
  uint64_t memories = 0;
  uint64_t turns = 0;
  uint64_t tokens = 0;
  uint64_t encoded_chunks = 0;
  uint64_t waiting_chunks = 0;
  uint64_t kv_segments = 0;
  uint64_t kv_bytes_on_disk = 0;
  uint64_t catalog_bytes_on_disk = 0;
  uint64_t landmark_cache_bytes = 0;
  uint64_t entry_cache_bytes = 0;
  uint64_t block_cache_bytes = 0;
  uint64_t memtable_bytes = 0;
  std::string file_io;  // "io_uring" or "posix", and whether O_DIRECT is in use
};

class Store {
 public:
  // Opens the store in `directory`, making it when it is not there. Fails with busy when another process has it open,
  // with invalid_request when it holds encodings of another model or was written in another format.
  static Expected<std::unique_ptr<Store>> open(const std::filesystem::path& directory, StoreOptions options);
  ~Store();  // writes out what is buffered

  // For a store that open() refuses because tables of its catalog are damaged: drops those whose rows can be made
  // again, which verify_store() and verify() then find missing. Returns how many. Fails with corrupt, and changes
  // nothing, when a table of the journal is damaged.
  static Expected<size_t> drop_damaged_tables(const std::filesystem::path& directory, const StoreOptions& options);

  // ---- The journal
  // Commits all batches in one synced write, all or none; the reply to each, in order. A batch fails alone when its
  // operation_id is known with another digest (invalid_request) or cannot be looked up (corrupt, io). The outer error
  // means that nothing was written.
  Expected<std::vector<Expected<Appended>>> append(std::span<const AppendBatch> batches);

  Expected<MemoryInfo> memory(std::string_view name) const;  // not_found
  Expected<MemoryInfo> memory(MemoryId id) const;            // not_found

  struct MemoryPage {
    std::vector<MemoryInfo> memories;  // by name
    std::string next;                  // the name to go on after; empty: the end
  };
  // Memories whose name begins with `prefix` and comes after `after`, at most `limit`.
  Expected<MemoryPage> memories(std::string_view prefix, std::string_view after, size_t limit) const;

  // The numbers of all memories, in order, from `after` (exclusive) on, at most `limit`.
  Expected<std::vector<MemoryId>> memory_ids(MemoryId after, size_t limit) const;

  // Turns from number `first` on, at most `limit`, and no further one once their content passes `bytes_max`.
  Expected<std::vector<StoredTurn>> turns(MemoryId id, uint64_t first, size_t limit, size_t bytes_max) const;

  // Token ids [first, first + count) of a generation; fewer at its end. Fails with busy when the generation is not what
  // it was, or when some of these tokens are being forgotten.
  Expected<std::vector<uint32_t>> tokens(const StreamInfo& of, uint64_t first, size_t count) const;
  Expected<std::vector<uint32_t>> tokens(MemoryId id, uint64_t first, size_t count) const;  // of the serving one

  // The text of tokens [first, end) with its turns. first < end <= tokens of the memory. `token_ends` becomes where in
  // the text each token ends: [end - first], one that is being forgotten where the token before it does.
  Expected<Passage> passage(MemoryId id, uint64_t first, uint64_t end, std::vector<size_t>* token_ends = nullptr) const;

  // The last turn that lies wholly within the first `tokens` tokens; nothing when there is none.
  Expected<std::optional<uint64_t>> last_turn_within(MemoryId id, uint64_t tokens) const;

  // ---- Forgetting
  // What forget() would take away.
  Expected<Forgotten> find_turns(MemoryId id, std::span<const TurnRange> turns) const;

  // Forgets turns: they are gone, durably, from every read when it returns; those that there are not are skipped. What
  // encoded chunks know of them stays behind until the generation without them is encoded and swap() has been called,
  // and their bytes until erase_forgotten().
  Expected<Forgotten> forget(MemoryId id, std::span<const TurnRange> turns);

  // Lets the next generation serve, if there is one and it has caught up with what it replaces, or `at_once`: then what
  // it lacks waits to be encoded. Whether it did.
  Expected<bool> swap(MemoryId id, bool at_once = false);

  // Removes a memory, durably: it is gone from every read when it returns. Its bytes stay until erase_forgotten().
  Expected<MemoryInfo> remove(std::string_view name);

  // Erases the bytes of what was forgotten in this memory, or of the memory when it was removed: K/V, rows and logs.
  // What fails is tried again by the next call, after the next open too.
  Expected<Erasure> erase_forgotten(MemoryId id);

  // Memories of which erase_forgotten() has something to do.
  Expected<std::vector<MemoryId>> to_erase() const;

  // remove() and erase_forgotten().
  Expected<void> erase(std::string_view name);

  // ---- Encodings
  // Stores the chunks that follow those which `to` says are encoded and, when given, the state after the last of them.
  // Order: K/V written and synced, then entries, landmarks and state in one write batch. Fails with not_found when the
  // memory was removed meanwhile, with busy when the generation is not what it was; nothing is left behind then.
  Expected<void> put(const StreamInfo& to, std::span<const EncodedChunkView> chunks,
                     std::optional<ByteView> state_after);
  // The same for the serving generation, whose next chunk is first_chunk.
  Expected<void> put(MemoryId id, uint64_t first_chunk, std::span<const EncodedChunkView> chunks,
                     std::optional<ByteView> state_after);

  // Keeps `state` as the newest checkpoint of the generation (on eviction and on a clean stop).
  Expected<void> put_state(const StreamInfo& of, uint64_t chunks, ByteView state);
  Expected<void> put_state(MemoryId id, uint64_t chunks, ByteView state);  // of the serving one

  // The newest checkpoint that covers at most `chunks_max` chunks; nothing when there is none. One that is damaged is
  // passed over: `damage` then says why.
  Expected<std::optional<StateCheckpoint>> state(const StreamInfo& of, uint64_t chunks_max,
                                                 std::string* damage = nullptr) const;
  Expected<std::optional<StateCheckpoint>> state(MemoryId id, uint64_t chunks_max) const;  // of the serving one

  // Memories with complete chunks that wait for put(), or with a next generation, by id, from `after` (exclusive) on,
  // at most `limit`.
  Expected<std::vector<MemoryId>> unencoded(MemoryId after, size_t limit) const;

  Expected<ChunkEntry> chunk(MemoryId id, uint64_t chunk) const;            // not_found
  Expected<std::vector<Bf16>> landmark(MemoryId id, uint64_t chunk) const;  // [landmark_dim]

  // The landmarks of chunks first, first + 1, ..., as they are stored, into out [chunks, landmark_dim]; busy when there
  // are fewer chunks. Those whose page cannot be read become not-a-numbers (0x7fc0) and are added to
  // `unreadable`; without it they are an error.
  Expected<void> landmarks(MemoryId id, uint64_t first, std::span<Bf16> out,
                           std::vector<Unreadable>* unreadable = nullptr) const;

  // Reads the K/V of `chunks` in one batch into out [chunks.size() * kv_bytes], in that order, each checked against
  // its checksum: corrupt names the memory, the chunk and the segment. With `unreadable` each damaged chunk is added
  // to it instead, its bytes in `out` being anything, and the others are whole.
  Expected<void> fetch(MemoryId id, std::span<const uint64_t> chunks, ByteSpan out,
                       std::vector<Unreadable>* unreadable = nullptr, const FetchWait& wait = {}) const;

  // The k best encoded chunks for `query` [landmark_dim], best first; fewer when there are fewer.
  // Not called from two threads with the same pool. Chunks whose landmarks are damaged are left out and told in
  // `unreadable`; without it they are an error. With `only`, other chunks are left out, and their pages unread.
  Expected<std::vector<ScoredChunk>> top_k(MemoryId id, std::span<const Bf16> query, size_t k, WorkerPool& pool,
                                           std::vector<Unreadable>* unreadable = nullptr,
                                           const ChunkSet* only = nullptr) const;
  // The same for each of several queries [count, landmark_dim] in one scan, among the first chunks_max chunks.
  Expected<std::vector<std::vector<ScoredChunk>>> top_k_each(MemoryId id, uint64_t chunks_max,
                                                             std::span<const Bf16> queries, size_t k, WorkerPool& pool,
                                                             std::vector<Unreadable>* unreadable = nullptr,
                                                             const ChunkSet* only = nullptr) const;

  // ---- Filters
  // The turns that are meant, of those that there are: by the index of attributes, and by their own rows where they are
  // not indexed. What was selected is kept, as far as there is room, and later only turns that were appended since are
  // looked at. Turns that are not indexed and whose rows are damaged are told by the selection.
  Expected<std::shared_ptr<const TurnSelection>> select(MemoryId id, const TurnQuery& query) const;

  // The numbers of these turns, apart from each other, in order. Fails with corrupt where damage keeps one from being
  // judged.
  Expected<std::vector<TurnRange>> meant_turns(MemoryId id, const TurnQuery& query) const;

  // The chunks in which at least one token of a selected turn lies that has not been forgotten.
  Expected<SelectedChunks> selected_chunks(MemoryId id, const TurnSelection& selection) const;

  // Indexes turns that an earlier version stored, or of whose block some were forgotten: of the first stretch of them,
  // from `from` on, unless bytes of it are to be erased. Returns the turn to go on from, or nothing. Fails as append().
  Expected<std::optional<uint64_t>> index_turns(MemoryId id, uint64_t from);

  // ---- Words
  // Chunks in order of the words that they share with a text, by BM25 (k1 1.2, b 0.75) over all chunks that the query
  // speaks of; of equals the lower chunk comes first. Of a text of more words the 64 rarest count. Chunks in which
  // turns stand that are being forgotten are left out.
  // With `begun`, the same work is not done again; where it was begun for another query, `also` aside, or the memory
  // was changed since, it goes unused: the result is the same.
  Expected<LexicalRanking> lexical_top_k(MemoryId id, const LexicalQuery& query,
                                         std::unique_ptr<LexicalBegun> begun = nullptr) const;
  // Finds the best of a query of which `also` is not known yet. What it holds of rows is bounded, and files that were
  // given up stay on disk as long as it reads them: it is not kept for long.
  Expected<std::unique_ptr<LexicalBegun>> begin_lexical(MemoryId id, const LexicalQuery& query) const;

  // Indexes the words of chunks that were encoded by an earlier version, or whose rows were dropped: of the first page
  // of a generation that lacks them, from `page` on. Returns the page to go on from; nothing when none is left. Fails
  // as put() does.
  Expected<std::optional<uint64_t>> index_words(const StreamInfo& of, uint64_t page);

  // ---- Verifying and mending
  // Is told how far a verification has come, and ends it by returning false.
  using Progress = std::function<bool(uint64_t done, uint64_t total)>;

  // Reads everything that belongs to a memory, in slices: neither appends nor searches wait for it. Damage is an
  // outcome; the error says why nothing could be verified. What is changed meanwhile is no damage. Nothing is encoded
  // to find it: every row and record has its own checksum.
  Expected<Verification> verify(MemoryId id, const Progress& progress) const;

  // Verifies what belongs to no memory alone: tables, segments, names, rows of no memory, and the store's counters.
  // With `repair` it makes again what can be: names and counters, and the families of encodings without their damaged
  // tables, whose rows verify() then misses.
  Expected<std::vector<Problem>> verify_store(bool repair);

  // The numbers of all memories, from `after` (exclusive) on, at most `limit`; damaged ones too.
  Expected<std::vector<MemoryId>> all_memories(MemoryId after, size_t limit) const;

  // Writes chunks of one page of landmarks again, K/V in a new place, and states [state_bytes] by the chunks that they
  // cover; all or nothing. `chunks` are by number and have all of the page whose landmark cannot be read. Fails with
  // busy when the generation is not what it was.
  Expected<void> mend(const StreamInfo& of, std::span<const MendedChunk> chunks,
                      std::span<const StateCheckpoint> states);
  // Removes damaged rows that nothing needs, and those of words that index_words() makes again.
  Expected<void> drop(const Verification::Lost& lost);

  // Removes the index of turns whose rows of attributes are damaged, which index_turns() makes again.
  Expected<void> drop_attributes(MemoryId id, std::span<const TurnRange> turns);

  // The turn as it is stored.
  Expected<StoredTurn> turn(MemoryId id, uint64_t number) const;
  // Writes the tokens of a turn again, which `turn` says how many there must be of.
  Expected<void> mend_tokens(MemoryId id, uint64_t number, std::span<const uint32_t> ids,
                             std::span<const uint32_t> ends);
  // Writes the name of a memory and the note that it waits again.
  Expected<void> mend_rows(MemoryId id);

  // How many landmarks are on a page.
  uint64_t page_chunks() const;

  Expected<StoreStats> stats() const;

  // ---- Export and import: what other functions do not read, and writing what an export says
  // Operations of a memory in the order of the hashes of their ids, after this one, at most `limit`.
  Expected<std::vector<StoredOperation>> operations(MemoryId id, const std::optional<Hash128>& after,
                                                    size_t limit) const;

  // The first checkpoint that covers more than `after` chunks and at most `chunks_max`; nothing when there is none.
  Expected<std::optional<StateCheckpoint>> next_state(const StreamInfo& of, uint64_t after, uint64_t chunks_max) const;

  // Makes a memory without turns. Fails with busy when there is one of this name.
  Expected<MemoryInfo> restore_memory(std::string_view name, int64_t created_us, int64_t updated_us);

  // Appends turns that all have their numbers, in one synced batch. Fails with not_found when the memory was removed,
  // with busy when its next_turn is not this: something else was appended.
  Expected<MemoryInfo> restore_turns(MemoryId id, uint64_t next_turn, std::span<const NewTurn> turns,
                                     int64_t updated_us);

  // Adds those operations that there are not yet, of turns that the memory has or had, in one synced batch; returns how
  // many. invalid_request when one has the id of another, with other turns.
  Expected<uint64_t> restore_operations(MemoryId id, std::span<const StoredOperation> operations);

  // Sets the number of the next turn, if it grows by that or stays, and then the time of the last append.
  Expected<MemoryInfo> restore_end(MemoryId id, uint64_t next_turn, int64_t updated_us);

  // ---- Backup
  // Copies the store, with everything that is durable when it is called, into a new directory that a store can be
  // opened on. Appends, searches and encodings go on meanwhile; erasing waits.
  Expected<BackupSummary> backup(const std::filesystem::path& directory, const BackupOptions& options = {}) const;

 private:
  class Impl;
  explicit Store(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace recalld
