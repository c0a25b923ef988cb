// The catalog's files on a PowerDisk, as RocksDB sees them.
#pragma once

#include <memory>

#include "tests/support/power_disk.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace recalld {

// RocksDB's log of messages goes nowhere: it is no part of what a catalog needs. `disk` outlives what is returned.
std::shared_ptr<rocksdb::Env> power_env(PowerDisk& disk);

}  // namespace recalld
