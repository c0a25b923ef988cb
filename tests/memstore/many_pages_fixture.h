// A store that is filled by the model of a few lines, with landmarks so large that few chunks make many pages.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memstore/store.h"
#include "tests/support/fake_model.h"
#include "tests/support/temp_dir.h"

namespace recalld {

// Two landmarks fit on a page of 128 KiB.
using ManyPagesModel = FakeModelOf<32768>;

class ManyPagesTest : public ::testing::Test {
 protected:
  using Model = ManyPagesModel;

  void SetUp() override { open(); }

  std::filesystem::path data() const { return directory_.path() / "data"; }
  std::filesystem::path catalog_data() const { return data() / "catalog"; }
  // Anew where it is open.
  void open() {
    store_.reset();
    store_ = Model::open(data());
  }
  MemoryId append(const std::string& memory, const std::vector<std::string>& contents, std::string operation_id = {}) {
    return Model::append(*store_, memory, contents, std::move(operation_id));
  }
  void settle(MemoryId id) {
    const auto settled = Model::settle(*store_, id);
    ASSERT_TRUE(settled) << settled.error().message;
  }

  const TempDir directory_;
  std::unique_ptr<Store> store_;
};

}  // namespace recalld
