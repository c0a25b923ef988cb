#include "client/line_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "client/text.h"

namespace recalld::client {

Expected<LineReader> LineReader::open(const std::string& path, Options options) {
  if (path == "-") return LineReader(Descriptor(), "standard input", std::move(options));
  if (path.empty())
    return fail(ErrorKind::invalid_request,
                "FILE: expected a file to read, or - for standard input, got an empty name");
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() == -1) return std::unexpected(system_error("open " + path, errno));
  struct stat status {};
  if (fstat(file.get(), &status) != 0) return std::unexpected(system_error("look at " + path, errno));
  if (S_ISDIR(status.st_mode)) {
    return fail(ErrorKind::invalid_request, "open " + path + ": it is a directory; name a file in it");
  }
  LineReader reader(std::move(file), path, std::move(options));
  if (S_ISREG(status.st_mode)) reader.bytes_total_ = static_cast<uint64_t>(status.st_size);
  return reader;
}

LineReader::LineReader(Descriptor file, std::string source, Options options)
    : file_(std::move(file)), source_(std::move(source)), options_(std::move(options)) {}

int LineReader::input() const {
  return file_.get() == -1 ? STDIN_FILENO : file_.get();
}

// A regular file is always readable. The first look waits for nothing, so that a wait is told from a read; later ones
// end after a while, so that a signal that comes just before them is seen too.
bool LineReader::wait_until_readable() {
  for (auto slice = std::chrono::milliseconds(0);;) {
    const bool stopped = options_.stop && options_.stop();
    if (stopped && last_read_) return false;
    pollfd entry{input(), POLLIN, 0};
    const int ready = poll(&entry, 1, stopped ? 0 : static_cast<int>(slice.count()));
    if (ready > 0 || (ready < 0 && errno != EINTR)) {
      last_read_ = stopped;
      return true;  // an error is for read() to name
    }
    if (stopped) return false;
    slice = pause;
    if (!options_.on_pause || !more_since_pause_) continue;
    const auto now = Clock::now();
    if (!pause_end_) pause_end_ = now + pause;
    if (now >= *pause_end_) {
      more_since_pause_ = false;
      pause_end_.reset();
      options_.on_pause();
    } else {
      slice = std::chrono::ceil<std::chrono::milliseconds>(*pause_end_ - now);
    }
  }
}

Expected<bool> LineReader::next(std::string& line) {
  line.clear();
  ++line_;
  for (;;) {
    const std::string_view waiting = std::string_view(buffer_).substr(buffer_at_);
    const size_t newline = waiting.find('\n');
    line.append(waiting.substr(0, newline));
    // Also the bound of plain text: a turn over 1 MiB is refused with its size once its end is known.
    if (line.size() > line_bytes_max) {
      return refuse("the line has more than " + with_thousands(line_bytes_max) + " bytes; split it into several");
    }
    if (newline != std::string_view::npos) {
      buffer_at_ += newline + 1;
      end_byte_ += line.size() + 1;
      return true;
    }
    if (at_end_) {
      buffer_at_ = buffer_.size();
      end_byte_ += line.size();
      return !line.empty() && !last_read_;
    }
    buffer_.resize(read_bytes);
    buffer_at_ = 0;
    if (!wait_until_readable()) {
      buffer_.clear();
      return false;  // half a line is none
    }
    ssize_t got = 0;
    do got = read(input(), buffer_.data(), buffer_.size());
    while (got < 0 && errno == EINTR);
    if (got < 0) return std::unexpected(system_error("read " + source_, errno));
    buffer_.resize(static_cast<size_t>(got));
    at_end_ = got == 0;
    more_since_pause_ = true;
  }
}

Expected<std::optional<std::string>> LineReader::tail(size_t bytes) const {
  if (!bytes_total_) return std::nullopt;
  std::string out(std::min<uint64_t>(bytes, *bytes_total_), '\0');
  const auto begin = static_cast<off_t>(*bytes_total_ - out.size());
  const ssize_t got = pread(file_.get(), out.data(), out.size(), begin);
  if (got < 0) return std::unexpected(system_error("read the end of " + source_, errno));
  out.resize(static_cast<size_t>(got));
  return out;
}

std::unexpected<Error> LineReader::refuse(std::string_view why) const {
  return fail(ErrorKind::invalid_request, source_ + ":" + std::to_string(line_) + ": " + std::string(why));
}

bool is_blank(std::string_view line) {
  return std::ranges::all_of(line, [](char c) { return c == ' ' || c == '\t'; });
}

}  // namespace recalld::client
