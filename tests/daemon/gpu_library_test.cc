#include "daemon/gpu_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char file_name[] = "librecalld_cuda.so";

// An executable in a folder of the test's own, with nothing beside it.
class GpuLibrary : public ::testing::Test {
 protected:
  GpuLibrary() { fs::create_directories(directory_.path() / "prefix/bin"); }

  Environment environment() const {
    return {.variable = [this](const char* name) { return std::string(name) == "RECALLD_CUDA_LIBRARY" ? named_ : ""; },
            .executable = directory_.path() / "prefix/bin/recalld"};
  }
  Expected<std::unique_ptr<Gpu>> open(const GpuOptions& options = {}) const {
    return open_gpu(environment(), options, driver_.c_str());
  }
  Error refusal(const GpuOptions& options = {}) const {
    const auto gpu = open(options);
    return gpu ? Error{ErrorKind::internal, "opened"} : gpu.error();
  }

  TempDir directory_;
  std::string named_;                       // RECALLD_CUDA_LIBRARY
  std::string driver_ = FAKE_GPU_STRANGER;  // any library
};

TEST_F(GpuLibrary, OpensTheGpuWithWhatItIsTold) {
  named_ = FAKE_GPU_GOOD;
  const auto gpu = open({.model = "/m", .budget_bytes = 2000});
  ASSERT_TRUE(gpu) << gpu.error().message;
  EXPECT_EQ((*gpu)->name(), "fake for /m");
  EXPECT_EQ((*gpu)->usage().budget_bytes, 1000u);
}

TEST_F(GpuLibrary, MayBeOpenedAgainOnceItsGpuIsGone) {
  named_ = FAKE_GPU_GOOD;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(open());
}

TEST_F(GpuLibrary, LiesBesideTheExecutableOrInTheFolderOfLibraries) {
  const auto places = gpu_library_places(environment());
  ASSERT_EQ(places.size(), 2u);
  EXPECT_EQ(places[0], directory_.path() / "prefix/bin" / file_name);
  EXPECT_EQ(places[1].parent_path().filename(), "recalld");
  EXPECT_EQ(fs::relative(places[1], directory_.path() / "prefix").string().find(".."), std::string::npos) << places[1];
  EXPECT_EQ(refusal().kind, ErrorKind::not_found);

  fs::create_directories(places[1].parent_path());
  fs::copy(FAKE_GPU_GOOD, places[1]);
  EXPECT_TRUE(open());
  fs::copy(FAKE_GPU_OTHER_BUILD, places[0]);
  EXPECT_THAT(refusal().message, HasSubstr(places[0].string()));
}

TEST_F(GpuLibrary, OneThatIsNotThereIsNamedWithWhereItWasLookedFor) {
  const Error error = refusal();
  EXPECT_EQ(error.kind, ErrorKind::not_found);
  EXPECT_THAT(error.message, AllOf(HasSubstr(std::string("there is no ") + file_name + " in " +
                                             (directory_.path() / "prefix/bin").string()),
                                   HasSubstr("built or installed without CUDA")));
}

TEST_F(GpuLibrary, OneThatTheVariableNamesMustBeThere) {
  fs::copy(FAKE_GPU_GOOD, directory_.path() / "prefix/bin" / file_name);
  named_ = (directory_.path() / "none.so").string();
  EXPECT_EQ(refusal().kind, ErrorKind::device);
  EXPECT_THAT(refusal().message, HasSubstr("RECALLD_CUDA_LIBRARY names " + named_ + ", which is not there"));
}

TEST_F(GpuLibrary, WithoutADriverTheLibraryIsNotLoaded) {
  named_ = (directory_.path() / "text.so").string();
  std::ofstream(named_) << "This would be refused.";
  driver_ = "libno-such-driver.so.1";
  EXPECT_EQ(refusal().kind, ErrorKind::not_found);
  EXPECT_THAT(refusal().message, HasSubstr("there is no NVIDIA driver (" + driver_));
}

TEST_F(GpuLibrary, AFileThatIsNoneIsRefusedWithTheLoadersReason) {
  named_ = (directory_.path() / "text.so").string();
  std::ofstream(named_) << "This is no library, though it is long enough for the header of one: "
                        << std::string(4096, '.');
  EXPECT_EQ(refusal().kind, ErrorKind::device);
  EXPECT_THAT(refusal().message, AllOf(HasSubstr("load " + named_), HasSubstr("ELF")));
}

TEST_F(GpuLibrary, AnotherBuildIsRefusedBeforeItsTypesAreUsed) {
  named_ = FAKE_GPU_OTHER_BUILD;
  EXPECT_EQ(refusal().kind, ErrorKind::device);
  EXPECT_THAT(refusal().message, AllOf(HasSubstr("load " + named_ + ": it is of build \"another build\""),
                                       HasSubstr("install both from one build")));
}

TEST_F(GpuLibrary, ALibraryOfSomebodyElseIsRefused) {
  named_ = FAKE_GPU_STRANGER;
  EXPECT_EQ(refusal().kind, ErrorKind::device);
  EXPECT_THAT(refusal().message, HasSubstr("it has no recalld_gpu_build"));
}

TEST_F(GpuLibrary, WhatTheLibraryRefusesIsPassedOn) {
  named_ = FAKE_GPU_GOOD;
  EXPECT_EQ(refusal({.model = "/m", .budget_bytes = 1}).kind, ErrorKind::invalid_request);
  EXPECT_EQ(refusal({.model = "/m", .budget_bytes = 1}).message, "open the GPU: it takes 1000 bytes");
}

}  // namespace
}  // namespace recalld
