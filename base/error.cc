#include "base/error.h"

#include <cerrno>
#include <system_error>

namespace recalld {

std::string_view name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid_request:
      return "invalid_request";
    case ErrorKind::not_found:
      return "not_found";
    case ErrorKind::corrupt:
      return "corrupt";
    case ErrorKind::io:
      return "io";
    case ErrorKind::full:
      return "full";
    case ErrorKind::device:
      return "device";
    case ErrorKind::busy:
      return "busy";
    case ErrorKind::internal:
      return "internal";
  }
  return "internal";
}

Error system_error(std::string_view action, int error_number) {
  const ErrorKind kind = error_number == ENOSPC || error_number == EDQUOT ? ErrorKind::full : ErrorKind::io;
  return {kind, std::string(action) + ": " + std::generic_category().message(error_number)};
}

}  // namespace recalld
