#include "memstore/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "base/crc32c.h"
#include "base/hash.h"
#include "memstore/file_io_posix.h"

namespace recalld {
namespace {

constexpr std::string_view magic = "recalld store\n";
constexpr std::string_view format_line = "format 2\n";
constexpr const char* adopting_file = "ADOPTING";     // there while DATA/next takes the place of the store
constexpr const char* dropped_directory = "dropped";  // what DATA/next becomes while it is removed

std::string stamp_of(const RecordShape& shape) {
  std::string text(magic);
  text += format_line;
  text += "kv_bytes " + std::to_string(shape.kv_bytes) + "\n";
  text += "landmark_dim " + std::to_string(shape.landmark_dim) + "\n";
  text += "state_bytes " + std::to_string(shape.state_bytes) + "\n";
  text += "model " + hex(shape.model) + "\n";
  std::array<char, 32> crc{};
  std::snprintf(crc.data(), crc.size(), "crc32c %08x\n", crc32c(as_bytes(text)));
  return text += crc.data();
}

// Whether the last line is the checksum of those before it.
bool is_stamp(std::string_view text) {
  const size_t last_line = text.find("crc32c ");
  if (!text.starts_with(magic) || last_line == std::string_view::npos) return false;
  std::array<char, 32> crc{};
  std::snprintf(crc.data(), crc.size(), "crc32c %08x\n", crc32c(as_bytes(text.substr(0, last_line))));
  return text.substr(last_line) == crc.data();
}

// The rest of the line that begins with `field` and a space.
std::string_view value_of(std::string_view text, std::string_view field) {
  const size_t at = text.find(std::string(field) + ' ');
  if (at == std::string_view::npos) return {};
  const size_t from = at + field.size() + 1;
  return text.substr(from, text.find('\n', from) - from);
}

std::optional<uint32_t> number(std::string_view digits) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc() && end == digits.data() + digits.size() ? std::optional(value) : std::nullopt;
}

Error not_a_stamp(const std::filesystem::path& file) {
  return {ErrorKind::corrupt, "open store: " + file.string() +
                                  " is not the stamp of a recalld store, or damaged; restore it from a backup, or "
                                  "choose another directory with --data"};
}

Error another_format(const std::filesystem::path& file, std::string_view found) {
  return {ErrorKind::invalid_request, "open store: " + file.string() + " says format " +
                                          std::string(value_of(found, "format")) +
                                          ", this recalld reads format 2: use the version that wrote the store, or "
                                          "choose another directory with --data"};
}

// Why a stamp that differs from ours is refused.
Error refusal(const std::filesystem::path& file, std::string_view found, const RecordShape& shape) {
  if (!is_stamp(found)) return not_a_stamp(file);
  if (!found.substr(magic.size()).starts_with(format_line)) return another_format(file, found);
  return {ErrorKind::invalid_request,
          "open store: " + file.string() + " was stamped by another model (model " +
              std::string(value_of(found, "model")) + ", yours is " + hex(shape.model) +
              "), whose encodings cannot be compared with this one's. Start recalld with the model that wrote the "
              "store (--model) and run `recall reencode` with the directory of the new one; or, without the old model, "
              "start it once with --reencode, and what is stored can be searched again piece by piece"};
}

// An error is no answer: what cannot be seen may be there.
Expected<bool> is_there(const std::filesystem::path& what) {
  std::error_code unseen;
  const bool there = std::filesystem::exists(what, unseen);
  if (unseen) return std::unexpected(system_error("look for " + what.string(), unseen.value()));
  return there;
}

// Makes the directory, durably, when it is not there. What is in it are users' words: nobody else may look.
Expected<void> make_private(const std::filesystem::path& path) {
  std::error_code problem;
  const std::filesystem::path whole = std::filesystem::absolute(path / "", problem).parent_path();
  std::vector<std::filesystem::path> missing;  // innermost first
  for (auto part = whole; !problem && !std::filesystem::exists(part, problem) && !problem; part = part.parent_path())
    missing.push_back(part);
  if (problem) return std::unexpected(system_error("make store " + path.string(), problem.value()));
  for (; !missing.empty(); missing.pop_back()) {
    const std::filesystem::path& part = missing.back();
    if (::mkdir(part.c_str(), part == whole ? 0700 : 0777) != 0 && errno != EEXIST)
      return std::unexpected(system_error("make store " + path.string(), errno));
    RECALLD_CHECK(sync_directory(part.parent_path()));
  }
  const bool is_directory = std::filesystem::is_directory(whole, problem);
  if (problem) return std::unexpected(system_error("open store " + path.string(), problem.value()));
  if (!is_directory)
    return fail(ErrorKind::invalid_request,
                "open store " + path.string() + ": this is not a directory; choose another one with --data");
  return {};
}

// Of a directory without a store in it: it must be empty, or as a start that was cut short left it.
Expected<void> check_that_nothing_else_is_there(const std::filesystem::path& path) {
  constexpr std::array<std::string_view, 3> ours{"LOCK", "FORMAT.new", "lost+found"};
  std::error_code problem;
  for (const char* part : {"FORMAT", "catalog", "kv"})
    if (std::filesystem::exists(path / part, problem) || problem) return {};  // looked at once it is locked
  for (std::filesystem::directory_iterator entry(path, problem), end; !problem && entry != end;
       entry.increment(problem)) {
    const std::string name = entry->path().filename();
    if (std::ranges::find(ours, name) == ours.end() && !entry->is_socket(problem))
      return fail(ErrorKind::invalid_request, "make store " + path.string() +
                                                  ": the directory holds other things, as " + name +
                                                  "; choose an empty one with --data");
  }
  if (problem) return std::unexpected(system_error("list " + path.string(), problem.value()));
  return {};
}

Expected<Descriptor> lock(const std::filesystem::path& path) {
  Descriptor lock(::open((path / "LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock.get() == -1) return std::unexpected(system_error("open " + (path / "LOCK").string(), errno));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return std::unexpected(system_error("lock " + (path / "LOCK").string(), errno));
    return fail(ErrorKind::busy, "open store " + path.string() +
                                     ": another recalld has it open; stop that one, or choose another directory "
                                     "with --data");
  }
  return lock;
}

Expected<std::optional<std::string>> read_stamp(const std::filesystem::path& file) {
  RECALLD_TRY(const bool there, is_there(file));
  if (!there) return std::nullopt;
  std::ifstream in(file, std::ios::binary);
  std::string text;
  std::array<char, 1024> part;
  while (in.read(part.data(), part.size()) || in.gcount() > 0)
    text.append(part.data(), static_cast<size_t>(in.gcount()));
  if (in.bad() || !in.eof())
    return fail(ErrorKind::io, "open store: " + file.string() + " cannot be read; look after its disk and permissions");
  return text;
}

// Goes on with putting DATA/next in the place of the store, if that was begun. Each step may have been done.
Expected<void> finish_adopting(const std::filesystem::path& path) {
  const std::filesystem::path next = DataDirectory::next(path);
  std::error_code problem;
  RECALLD_TRY(const bool adopting, is_there(path / adopting_file));
  if (!adopting) return {};
  for (const char* part : {"catalog", "kv"}) {
    RECALLD_TRY(const bool left, is_there(next / part));
    if (!left) continue;
    std::filesystem::remove_all(path / part, problem);
    if (!problem) std::filesystem::rename(next / part, path / part, problem);
    if (problem) return std::unexpected(system_error("replace " + (path / part).string(), problem.value()));
    RECALLD_CHECK(sync_directory(next));
    RECALLD_CHECK(sync_directory(path));
  }
  RECALLD_TRY(const bool stamp_left, is_there(next / "FORMAT"));
  if (stamp_left) {
    std::filesystem::rename(next / "FORMAT", path / "FORMAT", problem);
    if (problem) return std::unexpected(system_error("replace " + (path / "FORMAT").string(), problem.value()));
    RECALLD_CHECK(sync_directory(path));
  }
  std::filesystem::remove_all(next, problem);
  if (!problem) std::filesystem::remove(path / adopting_file, problem);
  if (problem) return std::unexpected(system_error("remove " + next.string(), problem.value()));
  return sync_directory(path);
}

// Goes on with removing what DATA/next was, if that was begun.
Expected<void> finish_dropping(const std::filesystem::path& path) {
  std::error_code problem;
  if (std::filesystem::remove_all(path / dropped_directory, problem) == 0 && !problem) return {};
  if (problem) return std::unexpected(system_error("remove " + (path / dropped_directory).string(), problem.value()));
  return sync_directory(path);
}

// The catalog is made before kv/ is, so that kv/ alone is a store that has lost its catalog.
Expected<void> check_that_catalog_is_there(const DataDirectory& directory) {
  RECALLD_TRY(const bool kv, is_there(directory.kv()));
  if (!kv) return {};
  RECALLD_TRY(bool there, is_there(directory.catalog()));
  std::error_code problem;
  there = there && !std::filesystem::is_empty(directory.catalog(), problem);
  if (problem) return std::unexpected(system_error("look for " + directory.catalog().string(), problem.value()));
  if (there) return {};
  return fail(ErrorKind::corrupt, "open store: " + directory.catalog().string() + " is missing beside " +
                                      directory.kv().string() +
                                      ", and the turns with it; put it back, or restore the store from a backup");
}

}  // namespace

Expected<void> write_durably(const std::filesystem::path& directory, const std::string& file, std::string_view text) {
  const std::string action = "write " + (directory / file).string();
  const std::filesystem::path fresh = directory / (file + ".new");
  const Descriptor out(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (out.get() == -1) return std::unexpected(system_error(action, errno));
  const ssize_t written = ::write(out.get(), text.data(), text.size());
  if (written < 0 || ::fsync(out.get()) != 0) return std::unexpected(system_error(action, errno));
  if (static_cast<size_t>(written) < text.size()) return std::unexpected(system_error(action, ENOSPC));
  if (::rename(fresh.c_str(), (directory / file).c_str()) != 0) return std::unexpected(system_error(action, errno));
  return sync_directory(directory);
}

Expected<DataDirectory> DataDirectory::open(const std::filesystem::path& path, const RecordShape& shape) {
  RECALLD_CHECK(make_private(path));
  RECALLD_CHECK(check_that_nothing_else_is_there(path));
  RECALLD_TRY(Descriptor held, lock(path));
  DataDirectory directory(path, std::move(held));
  RECALLD_CHECK(finish_adopting(path));
  RECALLD_CHECK(finish_dropping(path));

  const std::filesystem::path file = path / "FORMAT";
  RECALLD_TRY(const auto found, read_stamp(file));
  if (found) {
    if (*found != stamp_of(shape)) return std::unexpected(refusal(file, *found, shape));
    RECALLD_CHECK(check_that_catalog_is_there(directory));
    return directory;
  }
  RECALLD_TRY(const bool catalog, is_there(directory.catalog()));
  if (catalog)
    return fail(ErrorKind::corrupt,
                "open store: " + file.string() + " is missing beside a catalog; restore it from a backup");
  RECALLD_CHECK(write_durably(path, "FORMAT", stamp_of(shape)));
  return directory;
}

Expected<std::optional<RecordShape>> DataDirectory::stamp(const std::filesystem::path& path) {
  RECALLD_TRY(const bool adopting, is_there(path / adopting_file));
  if (adopting) {
    RECALLD_TRY(const Descriptor held, lock(path));
    RECALLD_CHECK(finish_adopting(path));
  }
  const std::filesystem::path file = path / "FORMAT";
  RECALLD_TRY(const auto found, read_stamp(file));
  if (!found) return std::nullopt;
  if (!is_stamp(*found)) return std::unexpected(not_a_stamp(file));
  if (!std::string_view(*found).substr(magic.size()).starts_with(format_line))
    return std::unexpected(another_format(file, *found));
  const auto kv_bytes = number(value_of(*found, "kv_bytes")), landmark_dim = number(value_of(*found, "landmark_dim")),
             state_bytes = number(value_of(*found, "state_bytes"));
  const auto model = hash_from_hex(value_of(*found, "model"));
  if (!kv_bytes || !landmark_dim || !state_bytes || !model) return std::unexpected(not_a_stamp(file));
  return RecordShape{
      .kv_bytes = *kv_bytes, .landmark_dim = *landmark_dim, .state_bytes = *state_bytes, .model = *model};
}

Expected<void> DataDirectory::adopt_next(const std::filesystem::path& path) {
  RECALLD_TRY(const Descriptor held, lock(path));
  RECALLD_CHECK(write_durably(path, adopting_file, "DATA/next takes the place of the store\n"));
  return finish_adopting(path);
}

Expected<void> DataDirectory::drop_next(const std::filesystem::path& path) {
  RECALLD_CHECK(finish_dropping(path));
  if (::rename(next(path).c_str(), (path / dropped_directory).c_str()) != 0) {
    if (errno == ENOENT) return {};
    return std::unexpected(system_error("remove " + next(path).string(), errno));
  }
  RECALLD_CHECK(sync_directory(path));
  return finish_dropping(path);
}

}  // namespace recalld
