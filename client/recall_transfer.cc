// Commands of recall that take a memory out of the store and bring it back: export and import.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/cli.h"
#include "client/line_reader.h"
#include "client/progress.h"
#include "client/text.h"

namespace recalld::client {

namespace {

// ---- Bounds of one import request; a single longer record goes alone.
constexpr size_t import_page_bytes_max = size_t{2} << 20;
constexpr size_t import_page_records_max = 1'000;
constexpr size_t end_record_bytes_max = 256;

std::string type_of(const Json& record) {
  const auto type = record.is_object() ? record.find("type") : record.end();
  return type != record.end() && type->is_string() ? type->get<std::string>() : "";
}

// ---- export

// A record as a line, its members in the order of docs/export-format.md.
std::string record_line(Json record) {
  constexpr std::array keys{"type",       "format",       "memory", "created",    "updated",   "next_turn",
                            "model_hash", "turn",         "role",   "name",       "content",   "time",
                            "metadata",   "operation_id", "digest", "first_turn", "last_turn", "tokens",
                            "turns",      "chunk",        "chunks", "landmark",   "kv",        "state"};
  nlohmann::ordered_json out;
  for (const char* key : keys) {
    if (const auto found = record.find(key); found != record.end()) {
      out[key] = std::move(*found);
      record.erase(found);
    }
  }
  for (auto& [key, value] : record.items()) out[key] = std::move(value);  // what is newer than this
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

// Where an export goes: standard output, a device or pipe as it comes, or FILE.part, which becomes FILE once it is
// whole. An unfinished one is removed. A file that is there already stays, unless it is to be replaced.
class Output {
 public:
  static Expected<Output> open(std::string path, bool replace) {
    if (path == "-") return Output(Descriptor(), "");
    if (path.empty()) return fail(ErrorKind::invalid_request, "FILE: expected a file to write, got an empty name");
    std::error_code problem;
    const auto status = std::filesystem::status(path, problem);
    if (std::filesystem::is_directory(status))
      return fail(ErrorKind::invalid_request, "write " + path + ": it is a directory; name a file in it");
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
      Descriptor device(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (device.get() == -1) return std::unexpected(system_error("write " + path, errno));
      Output output(std::move(device), std::move(path));
      output.renames_ = false;
      return output;
    }
    if (std::filesystem::exists(status) && !replace) return there_already(path);
    if (std::filesystem::exists(status)) path = std::filesystem::canonical(path, problem).string();  // through links
    if (!std::filesystem::exists(status) && std::filesystem::is_symlink(std::filesystem::symlink_status(path, problem)))
      return fail(ErrorKind::invalid_request,
                  "write " + path + ": it is a link to a file that does not exist; remove it, or name that file");
    const std::string part = path + ".part";
    // What somebody remembers is for their own eyes. Another export may be writing here.
    const int how = replace ? O_TRUNC : O_EXCL;
    Descriptor file(::open(part.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | how, 0600));
    if (file.get() == -1 && errno == EEXIST)
      return fail(ErrorKind::invalid_request,
                  "write " + part +
                      ": it is there already, of another export that goes on or of one that "
                      "was killed; remove it, or give --force to replace it");
    if (file.get() == -1) return std::unexpected(system_error("write " + part, errno));
    Output output(std::move(file), path);
    output.replaces_ = replace;
    return output;
  }
  Output(Output&&) = default;
  ~Output() {
    if (file_.get() != -1 && renames_) unlink((path_ + ".part").c_str());
  }

  Expected<void> write(std::string_view text) {
    bytes_ += text.size();
    if (file_.get() == -1) {
      const std::string harmless = on_terminal_ ? printable_json(text) : "";
      if (on_terminal_) text = harmless;
      if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return {};
      return std::unexpected(system_error("write to standard output", errno));
    }
    while (!text.empty()) {
      const ssize_t written = ::write(file_.get(), text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return std::unexpected(system_error("write " + path_ + (renames_ ? ".part" : ""), errno));
      text.remove_prefix(static_cast<size_t>(written));
    }
    return {};
  }

  Expected<void> finish() {
    if (file_.get() == -1) {
      if (std::fflush(stdout) == 0) return {};
      return std::unexpected(system_error("write to standard output", errno));
    }
    if (!renames_) return {};
    const std::string part = path_ + ".part";
    if (fsync(file_.get()) != 0) return std::unexpected(system_error("write " + part, errno));
    // Nor is a file replaced that has come meanwhile, where the file system can tell.
    int renamed =
        renameat2(AT_FDCWD, part.c_str(), AT_FDCWD, path_.c_str(), replaces_ ? 0U : unsigned{RENAME_NOREPLACE});
    if (renamed != 0 && errno == EINVAL && !replaces_) renamed = std::rename(part.c_str(), path_.c_str());
    if (renamed != 0 && errno == EEXIST) return there_already(path_);
    if (renamed != 0) return std::unexpected(system_error("rename " + part + " to " + path_, errno));
    file_ = Descriptor();
    return {};
  }

  uint64_t bytes() const { return bytes_; }

 private:
  static std::unexpected<Error> there_already(const std::string& path) {
    return fail(ErrorKind::invalid_request,
                "write " + path + ": there is such a file already; name another one, or give --force to replace it");
  }

  Output(Descriptor file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  Descriptor file_;  // none: standard output
  std::string path_;
  bool on_terminal_ = isatty(STDOUT_FILENO) != 0;
  bool renames_ = true;    // FILE.part to the file, when it is whole
  bool replaces_ = false;  // a file that was there
  uint64_t bytes_ = 0;
};

struct Counts {
  uint64_t records = 0;
  uint64_t turns = 0;
  uint64_t chunks = 0;

  void add(const std::string& type) {
    ++records;
    turns += type == "turn" ? 1 : 0;
    chunks += type == "chunk" ? 1 : 0;
  }
};

struct ExportArguments {
  std::string file = "-";
  bool force = false;
  ExportRequest request;
};

// Writes page after page; the last record must be the one that says that nothing is missing.
Expected<Counts> write_export(Client& client, ExportRequest request, const Memory& memory, bool show_progress,
                              Output& output) {
  Progress progress(show_progress ? STDERR_FILENO : -1);
  const double expected = static_cast<double>(memory.turns + (request.encodings ? memory.encoded_chunks : 0));
  Counts counts;
  std::string last_type;
  for (;;) {
    RECALLD_TRY(ExportReply page, client.export_page(request));
    for (Json& record : page.records) {
      last_type = type_of(record);
      counts.add(last_type);
      RECALLD_CHECK(output.write(record_line(std::move(record))));
    }
    const double done = static_cast<double>(counts.turns + counts.chunks);
    progress.show(expected > 0 ? std::optional(done / expected) : std::nullopt,
                  counted(counts.turns, "turn") + "  " + readable_bytes(output.bytes()));
    if (Interrupt::seen()) return fail(ErrorKind::busy, "interrupted");
    if (!page.next_cursor) break;
    request.cursor = *page.next_cursor;
  }
  if (last_type != "end") {
    return fail(ErrorKind::internal,
                "export " + request.memory + ": the daemon ended it without its end record: is it of another version?");
  }
  return counts;
}

int run_export(const Globals& globals, const ExportArguments& arguments) {
  const bool to_file = arguments.file != "-";
  const Interrupt interrupt;
  auto client = connect(globals, false, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const auto memory = client->memory(arguments.request.memory);
  if (!memory) return fail_with(memory.error());
  auto output = Output::open(arguments.file, arguments.force);
  if (!output)
    return fail_with(output.error(), output.error().kind == ErrorKind::invalid_request ? exit_usage : exit_error);
  const bool show_progress = to_file || isatty(STDOUT_FILENO) == 0;
  const auto counts = write_export(*client, arguments.request, *memory, show_progress, *output);
  if (Interrupt::seen()) {
    return fail_with({ErrorKind::busy, "interrupted; " + (to_file ? arguments.file + " was not written"
                                                                  : "what was written has no end record")},
                     exit_interrupted);
  }
  if (!counts) return fail_with(counts.error());
  if (const auto finished = output->finish(); !finished) return fail_with(finished.error());
  if (!to_file) return exit_ok;
  if (globals.json) {
    return print_line({{"memory", memory->memory},
                       {"file", arguments.file},
                       {"records", counts->records},
                       {"turns", counts->turns},
                       {"chunks", counts->chunks},
                       {"bytes", output->bytes()}});
  }
  std::string message = "Exported " + memory->memory + " to " + arguments.file + ": " + counted(counts->turns, "turn");
  if (counts->chunks > 0) message += ", " + counted(counts->chunks, "chunk");
  return print(printable(message) + ", " + readable_bytes(output->bytes()) + ".\n");
}

// ---- import

// The type of a record, of which nothing more is read where the type comes first, as in what export writes.
std::string type_in(std::string_view line) {
  constexpr std::string_view begin = R"({"type":")";
  if (!line.starts_with(begin)) return type_of(Json::parse(line, nullptr, /*allow_exceptions=*/false));
  line.remove_prefix(begin.size());
  return std::string(line.substr(0, std::min(line.find('"'), line.size())));
}

// What an export is made of, record by record, from its memory record to its end record.
class RecordOrder {
 public:
  // `record` gives all of it, and is asked for the end record alone. Errors name the line at which `lines` stands.
  Expected<void> take(const std::string& type, const LineReader& lines, const std::function<Json()>& record) {
    if (type.empty()) return lines.refuse("expected a record of an export: a JSON object with a type");
    if (ended_) return lines.refuse("a record behind the end record; is this more than one export?");
    if (counts_.records == 0 && type != "memory")
      return lines.refuse("expected the record of type memory that an export begins with, got one of type " + type);
    if (counts_.records > 0 && type == "memory")
      return lines.refuse("a second record of type memory; is this more than one export?");
    counts_.add(type);
    last_line_ = lines.line();
    ended_ = type == "end";
    return ended_ ? check_counts(record(), lines) : Expected<void>();
  }

  const Counts& counts() const { return counts_; }
  bool ended() const { return ended_; }
  bool incomplete() const { return incomplete_; }  // the end record was there, and others were not
  uint64_t last_line() const { return last_line_; }

 private:
  // The end record says how many there were.
  Expected<void> check_counts(const Json& end, const LineReader& lines) {
    for (const auto& [key, count] : {std::pair("turns", counts_.turns), std::pair("chunks", counts_.chunks)}) {
      const auto said = end.find(key);
      if (said == end.end() || !said->is_number_unsigned() || *said == count) continue;
      incomplete_ = true;
      return lines.refuse("the file holds " + with_thousands(count) + " " + key + ", its end record says " +
                          with_thousands(said->get<uint64_t>()) + ": lines are missing or were added");
    }
    return {};
  }

  Counts counts_;
  bool ended_ = false;
  bool incomplete_ = false;
  uint64_t last_line_ = 0;
};

// A file of records on its way into a memory.
class Import {
 public:
  Import(Client& client, LineReader& lines, std::string memory)
      : client_(client), lines_(lines), memory_(std::move(memory)) {}

  // Everything, page after page. What was sent before an error stays: the same import again goes on from there.
  Expected<void> run() {
    RECALLD_CHECK(check_file());
    Progress progress(STDERR_FILENO, lines_.bytes_total());
    std::string line;
    for (;;) {
      RECALLD_TRY(const bool more, lines_.next(line));
      if (Interrupt::seen()) return fail(ErrorKind::busy, "interrupted");
      if (!more) break;
      if (line.ends_with('\r')) line.pop_back();
      if (is_blank(line)) continue;
      RECALLD_CHECK(add(line));
      progress.show(lines_.end_byte(), order_.counts().turns, 0);
    }
    if (!order_.ended()) return cut_off("it ends after line " + std::to_string(order_.last_line()));
    return send();
  }

  const std::string& memory() const { return memory_; }
  const Counts& counts() const { return order_.counts(); }
  bool incomplete() const { return order_.incomplete(); }
  uint64_t imported() const { return imported_; }
  uint64_t present() const { return present_; }
  const std::optional<ImportReply>& reply() const { return reply_; }

 private:
  std::unexpected<Error> cut_off(const std::string& how) const {
    return fail(ErrorKind::invalid_request, lines_.source() + ": this is not a whole export of recalld: " + how +
                                                ", without the end record; make it with recall export");
  }

  // What can be read twice is looked at before anything is sent: a file that was cut off, or has lost lines, changes
  // nothing.
  Expected<void> check_file() const {
    RECALLD_TRY(const std::optional<std::string> tail, lines_.tail(end_record_bytes_max));
    if (!tail) return {};
    std::string_view rest = *tail;
    while (!rest.empty() && std::string_view(" \t\r\n").contains(rest.back())) rest.remove_suffix(1);
    if (rest.empty()) return cut_off("it holds nothing");
    const size_t newline = rest.rfind('\n');
    const std::string_view last = newline == std::string_view::npos ? rest : rest.substr(newline + 1);
    if (type_of(Json::parse(last, nullptr, /*allow_exceptions=*/false)) != "end")
      return cut_off("it ends in another line");

    RECALLD_TRY(LineReader lines, LineReader::open(lines_.source(), {.stop = Interrupt::seen}));
    RecordOrder order;
    std::string line;
    for (;;) {
      RECALLD_TRY(const bool more, lines.next(line));
      if (Interrupt::seen()) return fail(ErrorKind::busy, "interrupted");
      if (!more) return {};
      if (line.ends_with('\r')) line.pop_back();
      if (is_blank(line)) continue;
      RECALLD_CHECK(order.take(type_in(line), lines, [&] { return Json::parse(line, nullptr, false); }));
    }
  }

  Expected<void> add(const std::string& line) {
    Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const std::string type = type_of(record);
    RECALLD_CHECK(order_.take(type, lines_, [&] { return record; }));
    if (type == "memory" && memory_.empty()) {
      const auto name = record.find("memory");
      if (name == record.end() || !name->is_string())
        return lines_.refuse("memory: expected the memory's name; or name one with --memory");
      name->get_to(memory_);
    }
    const bool full = page_bytes_ + line.size() > import_page_bytes_max || page_.size() >= import_page_records_max;
    if (full && !page_.empty()) RECALLD_CHECK(send());
    page_.push_back(std::move(record));
    page_lines_.push_back(lines_.line());
    page_bytes_ += line.size();
    return {};
  }

  Expected<void> send() {
    if (page_.empty()) return {};
    auto reply = client_.import_records({memory_, std::exchange(page_, {})});
    const std::vector<uint64_t> lines = std::exchange(page_lines_, {});
    page_bytes_ = 0;
    if (!reply) return std::unexpected(named_by_line(std::move(reply).error(), lines));
    imported_ += reply->imported;
    present_ += reply->present;
    reply_ = *std::move(reply);
    return {};
  }

  // "records[17].time: ..." as "notes.jsonl:18: time: ...".
  Error named_by_line(Error error, const std::vector<uint64_t>& lines) const {
    constexpr std::string_view begin = "records[";
    if (error.message.starts_with(begin)) {
      size_t record = 0;
      const char* const end = error.message.data() + error.message.size();
      const auto [stop, problem] = std::from_chars(error.message.data() + begin.size(), end, record);
      if (problem == std::errc() && stop != end && *stop == ']' && record < lines.size()) {
        std::string_view rest(stop + 1, end);
        while (rest.starts_with('.') || rest.starts_with(':') || rest.starts_with(' ')) rest.remove_prefix(1);
        error.message = lines_.source() + ":" + std::to_string(lines[record]) + ": " + std::string(rest);
        return error;
      }
    }
    return std::move(error).within(lines_.source() + ", lines " + std::to_string(lines.front()) + " to " +
                                   std::to_string(lines.back()));
  }

  Client& client_;
  LineReader& lines_;
  std::string memory_;
  std::vector<Json> page_;
  std::vector<uint64_t> page_lines_;  // where each record of the page stands
  size_t page_bytes_ = 0;
  RecordOrder order_;
  uint64_t imported_ = 0;
  uint64_t present_ = 0;
  std::optional<ImportReply> reply_;  // the last
};

int run_import(const Globals& globals, const std::string& file, const std::string& memory) {
  const Interrupt interrupt;
  auto lines = LineReader::open(file, {.stop = Interrupt::seen});
  if (!lines) return fail_with(lines.error(), exit_usage);
  auto client = connect(globals, true, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  Import import(*client, *lines, memory);
  if (const auto done = import.run(); !done) {
    Error error = done.error();
    if (Interrupt::seen()) error.message = "interrupted";
    if (import.imported() > 0) {
      error.message +=
          " (" + counted(import.imported(), "record") + (import.imported() == 1 ? " was" : " were") + " imported; ";
      error.message += import.incomplete() ? "no later import fills what is missing: recall memories delete " +
                                                 import.memory() + " and import a whole file)"
                                           : "the same import again goes on from there)";
    }
    if (Interrupt::seen()) return fail_with(error, exit_interrupted);
    return error.kind == ErrorKind::invalid_request ? fail_with(error, exit_usage) : fail_with(error);
  }
  const Memory& now = import.reply()->memory;
  if (globals.json) {
    return print_line({{"memory", import.memory()},
                       {"records", import.counts().records},
                       {"imported", import.imported()},
                       {"present", import.present()},
                       {"turns", now.turns},
                       {"chunks", now.chunks},
                       {"encoded_chunks", now.encoded_chunks}});
  }
  std::string message =
      "Imported " + counted(import.imported(), "record") + " of " + lines->source() + " into " + import.memory();
  if (import.present() > 0) {
    message += "; " + with_thousands(import.present()) + (import.present() == 1 ? " was" : " were") + " there already";
  }
  message += ". It has " + counted(now.turns, "turn") + " and " + counted(now.chunks, "chunk") + ", " +
             with_thousands(now.encoded_chunks) + " of them encoded";
  if (now.encoded_chunks < now.chunks) message += "; the rest is encoded behind";
  return print(printable(message) + ".\n");
}

}  // namespace

void add_export(CLI::App& app, const Globals& globals, Run& run) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command = app.add_subcommand("export", "Write a memory as a file of JSON lines, which import restores");
  command->add_option("MEMORY", arguments->request.memory, "The name of the memory")->required();
  command->add_option("FILE", arguments->file, "Where to; - is standard output")->capture_default_str();
  command->add_flag("--force", arguments->force, "Replace FILE where it is there already");
  command->add_flag("--encodings", arguments->request.encodings,
                    "Also landmarks, K/V and states: larger, and nothing is encoded anew where the model is the same");
  command->callback(
      [&globals, &run, arguments] { run = [&globals, arguments] { return run_export(globals, *arguments); }; });
}

void add_import(CLI::App& app, const Globals& globals, Run& run) {
  auto file = std::make_shared<std::string>();
  auto memory = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("import", "Restore a memory from what export wrote");
  command->add_option("FILE", *file, "What to read; - is standard input")->required();
  command->add_option("--memory", *memory, "Into a memory of this name; default: its own")
      ->check(not_empty("the name of a memory"));
  command->callback([&globals, &run, file, memory] {
    run = [&globals, file, memory] { return run_import(globals, *file, *memory); };
  });
}

}  // namespace recalld::client
