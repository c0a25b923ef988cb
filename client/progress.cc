#include "client/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "client/text.h"

namespace recalld::client {

namespace {

constexpr auto redraw_interval = std::chrono::milliseconds(100);

// A progress line that cannot be written is no reason to stop loading.
void write_quietly(int descriptor, std::string_view text) {
  if (write(descriptor, text.data(), text.size()) < 0) return;
}

std::string minutes_and_seconds(double seconds) {
  const auto whole = static_cast<uint64_t>(std::clamp(seconds, 0.0, 359'999.0));
  const std::string rest = std::to_string(whole % 60);
  return std::to_string(whole / 60) + ":" + (rest.size() < 2 ? "0" : "") + rest;
}

}  // namespace

std::string progress_line(uint64_t bytes, std::optional<uint64_t> bytes_total, uint64_t turns, uint64_t tokens,
                          double seconds, size_t columns) {
  std::string counts = with_thousands(turns) + " turns  " + with_thousands(tokens) + " tokens";
  if (seconds > 0) {
    counts += "  " + with_thousands(static_cast<uint64_t>(static_cast<double>(tokens) / seconds)) + " tokens/s";
  }
  if (!bytes_total || *bytes_total == 0) return shorten(readable_bytes(bytes) + "  " + counts, columns);
  return progress_line(static_cast<double>(bytes) / static_cast<double>(*bytes_total), std::move(counts), seconds,
                       columns);
}

std::string progress_line(std::optional<double> share, std::string counts, double seconds, size_t columns) {
  if (!share) return shorten(counts, columns);
  const double done = std::clamp(*share, 0.0, 1.0);
  if (done > 0) counts += "  " + minutes_and_seconds(seconds / done - seconds) + " left";
  std::string percent = std::to_string(static_cast<int>(done * 100)) + "%";
  percent.insert(0, 4 - percent.size(), ' ');

  constexpr size_t bar_columns_max = 30;
  const size_t taken = counts.size() + percent.size() + 6;
  const size_t bar_columns = columns > taken ? std::min(columns - taken, bar_columns_max) : 0;
  std::string line;
  if (bar_columns >= 5) {
    const auto filled = static_cast<size_t>(done * static_cast<double>(bar_columns));
    line = "[" + std::string(filled, '#') + std::string(bar_columns - filled, '.') + "] ";
  }
  return shorten(line + percent + "  " + counts, columns);
}

Progress::Progress(int descriptor, std::optional<uint64_t> bytes_total)
    : descriptor_(descriptor),
      enabled_(isatty(descriptor) != 0),
      bytes_total_(bytes_total),
      start_(std::chrono::steady_clock::now()),
      next_draw_(start_) {}

Progress::~Progress() {
  if (drawn_) write_quietly(descriptor_, "\r\x1b[K");
}

void Progress::show(uint64_t bytes, uint64_t turns, uint64_t tokens) {
  if (due(bytes_total_ && bytes >= *bytes_total_))
    draw(progress_line(bytes, bytes_total_, turns, tokens, seconds(), columns()));
}

void Progress::show(std::optional<double> share, const std::string& counts) {
  if (due(share && *share >= 1)) draw(progress_line(share, counts, seconds(), columns()));
}

bool Progress::due(bool complete) {
  if (!enabled_) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_draw_ && !complete) return false;
  next_draw_ = now + redraw_interval;
  return true;
}

void Progress::draw(const std::string& line) {
  write_quietly(descriptor_, "\r" + line + "\x1b[K");
  drawn_ = true;
}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

size_t Progress::columns() const {
  winsize size{};
  const bool known = ioctl(descriptor_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col - 1U : 79U;
}

}  // namespace recalld::client
