// Compares tensors the way the golden files are stated: the relative error ‖a - b‖ / ‖b‖.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <span>

namespace recalld {

inline double relative_error(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference) / std::sqrt(size);
}

// ‖a - expected‖ / ‖expected‖ <= tolerance; a NaN anywhere fails.
inline ::testing::AssertionResult tensor_near(std::span<const float> a, std::span<const float> expected,
                                              double tolerance) {
  if (a.size() != expected.size())
    return ::testing::AssertionFailure() << a.size() << " elements, expected " << expected.size();
  const double error = relative_error(a, expected);
  if (error <= tolerance) return ::testing::AssertionSuccess() << "relative error " << error;
  return ::testing::AssertionFailure() << "relative error " << error << ", at most " << tolerance << " was asked for";
}

}  // namespace recalld
