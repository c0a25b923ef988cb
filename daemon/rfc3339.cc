#include "daemon/rfc3339.h"

#include <chrono>
#include <cstdio>

namespace recalld {
namespace {

constexpr int64_t second_us = 1'000'000;
constexpr int64_t minute_us = 60 * second_us;
constexpr int64_t hour_us = 60 * minute_us;
constexpr int64_t day_us = 24 * hour_us;

constexpr int64_t days_to(int year, unsigned month, unsigned day) {
  using namespace std::chrono;
  return sys_days{std::chrono::year{year} / static_cast<int>(month) / static_cast<int>(day)}.time_since_epoch().count();
}
constexpr int64_t time_us_min = days_to(1, 1, 1) * day_us;
constexpr int64_t time_us_end = (days_to(9999, 12, 31) + 1) * day_us;

// Takes fields off the front of a text; ok() turns false for good at the first that is not there.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool ok() const { return ok_; }
  bool done() const { return ok_ && text_.empty(); }

  char next() {
    if (text_.empty()) {
      ok_ = false;
      return '\0';
    }
    const char c = text_.front();
    text_.remove_prefix(1);
    return c;
  }
  void expect(std::string_view choices) {
    if (!choices.contains(next())) ok_ = false;
  }
  bool skip(char c) {
    const bool there = text_.starts_with(c);
    if (there) text_.remove_prefix(1);
    return there;
  }
  int number(int digits) {
    int value = 0;
    for (int i = 0; i < digits; ++i) {
      const char c = next();
      if (c < '0' || c > '9') ok_ = false;
      value = value * 10 + (c - '0');
    }
    return value;
  }
  // The digits after a point, as microseconds.
  int64_t fraction_us() {
    int64_t value = 0;
    size_t digits = 0;
    for (; !text_.empty() && text_.front() >= '0' && text_.front() <= '9'; ++digits) {
      const char c = next();
      if (digits < 6) value = value * 10 + (c - '0');
    }
    if (digits == 0) ok_ = false;
    for (; digits < 6; ++digits) value *= 10;
    return value;
  }

 private:
  std::string_view text_;
  bool ok_ = true;
};

}  // namespace

std::optional<int64_t> parse_rfc3339(std::string_view text) {
  Scanner in(text);
  const int year = in.number(4);
  in.expect("-");
  const int month = in.number(2);
  in.expect("-");
  const int day = in.number(2);
  in.expect("Tt ");
  const int hour = in.number(2);
  in.expect(":");
  const int minute = in.number(2);
  in.expect(":");
  const int second = in.number(2);
  const int64_t fraction_us = in.skip('.') ? in.fraction_us() : 0;
  int64_t offset_us = 0;
  if (!in.skip('Z') && !in.skip('z')) {
    const char sign = in.next();
    const int offset_hour = in.number(2);
    in.expect(":");
    const int offset_minute = in.number(2);
    if ((sign != '+' && sign != '-') || offset_hour > 23 || offset_minute > 59) return std::nullopt;
    offset_us = (sign == '-' ? -1 : 1) * (offset_hour * hour_us + offset_minute * minute_us);
  }
  if (!in.done()) return std::nullopt;

  const std::chrono::year_month_day date{std::chrono::year{year}, std::chrono::month{static_cast<unsigned>(month)},
                                         std::chrono::day{static_cast<unsigned>(day)}};
  if (year < 1 || !date.ok() || hour > 23 || minute > 59 || second > 60) return std::nullopt;

  const int64_t minute_start_us =
      std::chrono::sys_days{date}.time_since_epoch().count() * day_us + hour * hour_us + minute * minute_us - offset_us;
  if (second == 60) {
    const int64_t in_day_us = ((minute_start_us % day_us) + day_us) % day_us;
    if (in_day_us != day_us - minute_us) return std::nullopt;
  }
  // All of a leap second falls on one moment, so that times never run ahead of the next day.
  const int64_t time_us = minute_start_us + second * second_us + (second == 60 ? 0 : fraction_us);
  if (time_us < time_us_min || time_us >= time_us_end) return std::nullopt;
  return time_us;
}

std::string format_rfc3339(int64_t time_us) {
  using namespace std::chrono;
  const sys_time<microseconds> time{microseconds{time_us}};
  const sys_days midnight = floor<days>(time);
  const year_month_day date{midnight};
  const hh_mm_ss<microseconds> clock{time - midnight};
  char text[64];
  std::snprintf(text, sizeof text, "%04d-%02u-%02uT%02d:%02d:%02d", static_cast<int>(date.year()),
                static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                static_cast<int>(clock.hours().count()), static_cast<int>(clock.minutes().count()),
                static_cast<int>(clock.seconds().count()));
  std::string out = text;
  if (const auto fraction = clock.subseconds().count(); fraction != 0) {
    std::snprintf(text, sizeof text, ".%06d", static_cast<int>(fraction));
    out += text;
    out.erase(out.find_last_not_of('0') + 1);
  }
  return out + "Z";
}

}  // namespace recalld
