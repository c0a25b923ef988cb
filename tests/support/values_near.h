// Compares the results of two kernels value by value, each to its own size.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <vector>

#include "kernels/bf16.h"

namespace recalld {

// Of each value, where the sums of two twins have another order, and their exponentials an error of some units in the
// last place. A rounding to bf16 may then fall to the other side, one unit of bf16 away.
inline constexpr float f32_tolerance = 4e-6f, bf16_tolerance = 8e-3f;

inline float as_float(float value) {
  return value;
}
inline float as_float(Bf16 value) {
  return to_float(value);
}

template <class T>
void expect_each_near(const std::vector<T>& found, const std::vector<T>& expected) {
  const float tolerance = sizeof(T) == sizeof(float) ? f32_tolerance : bf16_tolerance;
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(as_float(found[i]), as_float(expected[i]), tolerance * std::abs(as_float(expected[i])) + 1e-30f)
        << "place " << i;
}

}  // namespace recalld
