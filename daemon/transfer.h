// A memory as a stream of records, out of the store and into it, page by page (docs/export-format.md).
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>

#include "base/error.h"
#include "daemon/requests.h"
#include "memstore/store.h"

namespace recalld {

// Bytes of a page of an export as JSON, unless one record alone is larger: small enough that the page, sent back as one
// request, is no line beyond line_bytes_max.
inline constexpr size_t export_page_bytes = size_t{4} << 20;
// Bytes of a state as JSON, at most, which leaves room for the request around it; exports have no states of larger
// models.
inline constexpr size_t export_state_bytes_max = line_bytes_max - (size_t{64} << 10);
// Imports that go on at a time; the one that has not been heard of for longest gives way to a further one.
inline constexpr size_t imports_max = 64;

class Transfer {
 public:
  struct Options {
    RecordShape shape;                           // of the store
    std::function<NewTurn(Turn)> tokenise;       // called by import_page()
    std::function<void(MemoryId)> encode;        // asks for a memory to be encoded
    std::chrono::milliseconds idle_max{60'000};  // after which an import that is not heard of counts as broken off
  };
  // Everything is borrowed; `upkeep` watches for imports that are broken off.
  Transfer(Store& store, boost::asio::thread_pool& upkeep, Options options);

  // The next page of an export. Any thread may call it; it blocks on the disk. It fails with busy when encodings are
  // asked for and turns are forgotten meanwhile: the export then begins again.
  Expected<ExportReply> export_page(const ExportRequest& request) const;

  // Takes the next records of an import; they are durable on return. One call at a time, in the order of the records.
  // Each import begins with its header; after an error it begins again, and skips what is there already.
  //
  // An import that brings encodings of this model is not encoded behind its back: the encoder is told of the memory
  // with the end record, or when the import is broken off. Should it encode the memory all the same, after a restart,
  // what it has encoded is kept and the record of that chunk is skipped.
  Expected<ImportReply> import_page(ImportRequest request);

  // Lets the encoder go on with what was broken off; no call may follow.
  void stop();

 private:
  enum class Phase { turns, operations, chunks, states };
  struct Import {
    MemoryId id = 0;
    ExportHeader header;
    bool takes_encodings = false;
    StreamInfo serving;  // as it was at the header: no turn has been forgotten since
    Phase phase = Phase::turns;
    uint64_t next_turn = 0;  // the lowest number that the next turn can have
    uint64_t end_token = 0;  // of the turns so far, in the memory
    uint64_t turns = 0;      // records
    uint64_t chunks = 0;     // records
    uint64_t state_chunks = 0;
    std::chrono::steady_clock::time_point last_use;
    bool encoder_told = false;  // since the last use
  };
  // The records of one kind that follow one another in a request.
  using Records = std::span<ExportRecord>;

  Expected<void> take(const std::string& memory, Records records, ImportReply& reply);
  Expected<void> begin(const std::string& memory, const ExportHeader& header, ImportReply& reply);
  Expected<void> enter(Import& current, Phase phase) const;
  Expected<void> take_turns(Import& current, Records records, ImportReply& reply);
  Expected<void> take_operations(Import& current, Records records, ImportReply& reply);
  Expected<void> take_chunks(Import& current, Records records, ImportReply& reply);
  Expected<void> take_states(Import& current, Records records, ImportReply& reply);
  Expected<void> end(const Import& current, const ExportEnd& end);
  Expected<MemoryInfo> unchanged(const Import& current) const;
  void drop(const std::string& memory);
  void watch();  // mutex_ is held

  Store& store_;
  const Options options_;

  std::mutex mutex_;  // guards what follows; import_page() alone adds and removes
  std::map<std::string, Import, std::less<>> imports_;
  boost::asio::steady_timer timer_;
  bool watching_ = false;
  bool stopped_ = false;
};

}  // namespace recalld
