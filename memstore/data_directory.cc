#include "memstore/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

#include "base/crc32c.h"
#include "base/hash.h"
#include "memstore/file_io_posix.h"

namespace recalld {
namespace {

constexpr std::string_view magic = "recalld store\n";
constexpr std::string_view format_line = "format 2\n";

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

// Why a stamp that differs from ours is refused.
Error refusal(const std::filesystem::path& file, std::string_view found, const RecordShape& shape) {
  const std::string action = "open store: " + file.string() + " ";
  const size_t last_line = found.find("crc32c ");
  std::array<char, 32> crc{};
  if (found.starts_with(magic) && last_line != std::string_view::npos)
    std::snprintf(crc.data(), crc.size(), "crc32c %08x\n", crc32c(as_bytes(found.substr(0, last_line))));
  if (!found.starts_with(magic) || last_line == std::string_view::npos || found.substr(last_line) != crc.data())
    return {ErrorKind::corrupt, action +
                                    "is not the stamp of a recalld store, or damaged; restore it from a backup, "
                                    "or choose another directory with --data"};
  const auto line = [&](std::string_view field) {
    const size_t from = found.find(field);
    return from == std::string_view::npos ? "" : std::string(found.substr(from, found.find('\n', from) - from));
  };
  if (!found.substr(magic.size()).starts_with(format_line))
    return {ErrorKind::invalid_request, action + "says " + line("format ") + ", this recalld reads format 2: use the " +
                                            "version that wrote the store, or choose another directory with --data"};
  return {ErrorKind::invalid_request,
          action + "was stamped by another model (" + line("model ") + ", yours is " + hex(shape.model) +
              "), whose encodings cannot be compared with this one's: give the model that wrote the store with "
              "--model, or choose another directory with --data and append again"};
}

// Writes the file so that after a crash it is there whole or not at all.
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

// Makes the directory, durably, when it is not there. What is in it are users' words: nobody else may look.
Expected<void> make_private(const std::filesystem::path& path) {
  std::error_code problem;
  const std::filesystem::path whole = std::filesystem::absolute(path / "", problem).parent_path();
  if (!problem) std::filesystem::create_directories(whole.parent_path(), problem);
  if (!problem && ::mkdir(whole.c_str(), 0700) != 0) {
    if (errno == EEXIST) return {};
    problem = {errno, std::generic_category()};
  }
  if (problem) return std::unexpected(system_error("make store " + path.string(), problem.value()));
  return sync_directory(whole.parent_path());
}

}  // namespace

Expected<DataDirectory> DataDirectory::open(const std::filesystem::path& path, const RecordShape& shape) {
  RECALLD_CHECK(make_private(path));
  Descriptor lock(::open((path / "LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock.get() == -1) return std::unexpected(system_error("open " + (path / "LOCK").string(), errno));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return std::unexpected(system_error("lock " + (path / "LOCK").string(), errno));
    return fail(ErrorKind::busy, "open store " + path.string() +
                                     ": another recalld has it open; stop that one, or choose another directory "
                                     "with --data");
  }
  DataDirectory directory(path, std::move(lock));

  const std::filesystem::path file = path / "FORMAT";
  if (std::ifstream in(file, std::ios::binary); in) {
    std::ostringstream text;
    text << in.rdbuf();
    const std::string found = text.str();
    if (found != stamp_of(shape)) return std::unexpected(refusal(file, found, shape));
    return directory;
  }
  std::error_code problem;
  if (std::filesystem::exists(directory.catalog(), problem))
    return fail(ErrorKind::corrupt, "open store: " + file.string() +
                                        " is missing or cannot be read, beside a catalog; restore it from a backup");
  RECALLD_CHECK(write_durably(path, "FORMAT", stamp_of(shape)));
  return directory;
}

}  // namespace recalld
