// The one error type of the project and the alias that functions return.
#pragma once

#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace recalld {

enum class ErrorKind {
  invalid_request,  // the caller's input cannot be served as it is; the message names the field
  not_found,        // the named memory, turn or chunk does not exist
  corrupt,          // bytes on disk are not what was written
  io,               // the operating system refused a read or a write
  full,             // no space is left, or a bound was reached
  device,           // an accelerator failed
  busy,             // somebody else holds the resource; the same call may succeed later
  internal,         // our own mistake
};

// The kind's name as it appears on the wire: "invalid_request", "not_found", ...
std::string_view name(ErrorKind kind);

// A failure: what kind, and a message that names the action, the object, the cause and the next step.
struct Error {
  ErrorKind kind = ErrorKind::internal;
  std::string message;

  // The same error with what the caller was doing put in front: "open store /x: ...".
  Error within(std::string_view action) && {
    message.insert(0, ": ").insert(0, action);
    return std::move(*this);
  }
};

template <class T>
using Expected = std::expected<T, Error>;

inline std::unexpected<Error> fail(ErrorKind kind, std::string message) {
  return std::unexpected<Error>(Error{kind, std::move(message)});
}

// "<action>: <text of errno>" as Error::io, or Error::full for ENOSPC and EDQUOT.
Error system_error(std::string_view action, int error_number);

}  // namespace recalld

// Unwraps an Expected into a new variable, or returns its error from the enclosing function.
#define RECALLD_CONCAT_(a, b) a##b
#define RECALLD_CONCAT(a, b) RECALLD_CONCAT_(a, b)
#define RECALLD_TRY(declaration, expression)                                                          \
  auto RECALLD_CONCAT(expected_, __LINE__) = (expression);                                            \
  if (!RECALLD_CONCAT(expected_, __LINE__))                                                           \
    return std::unexpected<::recalld::Error>(std::move(RECALLD_CONCAT(expected_, __LINE__)).error()); \
  declaration = *std::move(RECALLD_CONCAT(expected_, __LINE__))

// Runs an Expected<void> (or discards a value), or returns its error from the enclosing function.
#define RECALLD_CHECK(expression)                                             \
  do {                                                                        \
    if (auto expected_ = (expression); !expected_)                            \
      return std::unexpected<::recalld::Error>(std::move(expected_).error()); \
  } while (false)
