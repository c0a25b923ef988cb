// A consistent copy of the whole store while it is in use.
//
// First the catalog, as it is at one time; then the segments. A record that this catalog names was synced before, is
// never overwritten, and is not given back while the lock on erasing is held: so the segments hold it whenever they are
// copied. What they hold beyond that is named by nothing, as after a crash.
#include <algorithm>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "memstore/store_impl.h"

namespace recalld {
namespace {

// The segments that there are.
Expected<std::vector<BackupDirectory::File>> segments_in(const std::filesystem::path& directory) {
  std::vector<BackupDirectory::File> files;
  std::error_code problem;
  for (std::filesystem::directory_iterator entry(directory, problem), end; !problem && entry != end;
       entry.increment(problem)) {
    if (entry->path().extension() != ".seg") continue;
    const uint64_t bytes = entry->file_size(problem);
    if (problem) break;
    files.push_back({entry->path(), std::filesystem::path("kv") / entry->path().filename(), bytes, true});
  }
  if (problem) return std::unexpected(system_error("list " + directory.string(), problem.value()));
  std::ranges::sort(files, {}, &BackupDirectory::File::name);
  return files;
}

}  // namespace

Expected<BackupSummary> Store::backup(const std::filesystem::path& directory, const BackupOptions& options) const {
  const std::lock_guard reclaiming(impl_->reclaiming);
  const DataDirectory& data = impl_->directory;
  RECALLD_TRY(BackupDirectory copy, BackupDirectory::begin(directory, data.path(), options));
  RECALLD_CHECK(copy.make("catalog"));
  RECALLD_CHECK(copy.make("kv"));
  const auto copy_catalog = [&](std::span<const Catalog::File> files) -> Expected<void> {
    RECALLD_TRY(const auto segments, segments_in(data.kv()));
    std::vector<BackupDirectory::File> copied;
    for (const Catalog::File& file : files) {
      const std::filesystem::path name = std::filesystem::path("catalog") / file.name;
      if (file.contents)
        RECALLD_CHECK(copy.write(name, *file.contents));
      else
        copied.push_back({data.catalog() / file.name, name, file.bytes, file.whole});
    }
    return copy.copy(std::move(copied), segments);
  };
  RECALLD_CHECK(impl_->catalog->with_files(copy_catalog));
  // Listed anew: some may have come in between, and the catalog may name what lies in them.
  RECALLD_TRY(auto segments, segments_in(data.kv()));
  RECALLD_CHECK(copy.copy(std::move(segments), {}));

  // The stamp comes last, so that no store can be opened on less than all of it.
  std::ifstream in(data.format(), std::ios::binary);
  std::ostringstream stamp;
  stamp << in.rdbuf();
  if (!in || stamp.str().empty())
    return fail(ErrorKind::io, "back up to " + directory.string() + ": " + data.format().string() +
                                   " cannot be read; restore it from an earlier backup");
  RECALLD_CHECK(copy.write("FORMAT", stamp.str()));
  return copy.finish();
}

}  // namespace recalld
