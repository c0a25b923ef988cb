#include "daemon/reserve.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <system_error>
#include <utility>

#include "base/descriptor.h"

namespace recalld {

Reserve::Reserve(std::filesystem::path file, uint64_t bytes) : file_(std::move(file)), bytes_(bytes) {}

void Reserve::take() {
  struct stat status {};
  if (::stat(file_.c_str(), &status) == 0 && static_cast<uint64_t>(status.st_size) == bytes_) return;
  const Descriptor out(::open(file_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (out.get() == -1) return;
  // Without real blocks it would be no reserve: where the file system cannot say, there is none.
  if (::fallocate(out.get(), 0, 0, static_cast<off_t>(bytes_)) != 0) ::unlink(file_.c_str());
}

bool Reserve::give_up() {
  return ::unlink(file_.c_str()) == 0;
}

void Reserve::give_up_when_short() {
  std::error_code problem;
  const std::filesystem::space_info room = std::filesystem::space(file_.parent_path(), problem);
  if (!problem && room.available < bytes_) give_up();
}

}  // namespace recalld
