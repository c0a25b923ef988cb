// The state-space scan of a Mamba-2 block over 64 tokens, as matrix products (SSD, arXiv 2405.21060, section 6).
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/bf16.h"
#include "kernels/matmul.h"

namespace recalld {

struct SsdShape {
  size_t heads = 0;
  size_t head_dim = 0;    // a multiple of 16
  size_t state_size = 0;  // a multiple of 16

  size_t channels() const { return heads * head_dim + 2 * state_size; }  // x, B, C of one token
  size_t state_floats() const { return heads * state_size * head_dim; }
};

inline constexpr size_t ssd_block = 64;  // tokens

// What a layer needs beside the inputs. Pointers borrow.
struct SsdWeights {
  const float* dt_bias = nullptr;  // [heads]
  const float* a = nullptr;        // [heads] -exp(A_log)
  const float* d = nullptr;        // [heads]
};

// For one block, with S the incoming state of a head, c_t the running sum of dt_t a (dt after bias and softplus):
//   y_t = Σ_{s<=t} exp(c_t - c_s) dt_s (C_t · B_s) x_s + exp(c_t) C_t S + D x_t
//   S'  = exp(c_63) S + Σ_s exp(c_63 - c_s) dt_s B_s ⊗ x_s
// The sums over s in y are a product a head, [64, 64] · [64, head_dim]; C S and the sum in S' are one product for all
// heads, since B and C are the same for all of them. States stay in f32. Of a block that is not full, the tokens after
// the last one add nothing to the state and take nothing from it.
// Const functions may run on several threads at once; each call runs on its thread alone.
class SsdScan {
 public:
  static SsdScan make(ProductType type, SsdShape shape);

  // xbc: [64, channels] x then B then C, bf16 or f32 by type · dt: [64] rows of `heads`, dt_stride apart, before bias
  // state: [state_size, heads, head_dim] in and out · y: [heads, 64, head_dim]
  // rows: tokens of the block, from 1; what xbc and dt hold behind them are any finite numbers, and so is y there
  void run(const void* xbc, const float* dt, size_t dt_stride, const SsdWeights& weights, float* state, float* y,
           size_t rows = ssd_block) const;

 private:
  SsdScan(ProductType type, SsdShape shape);

  ProductType type_;
  SsdShape shape_;
  size_t group_;    // heads of one call of `inside_`: few enough that their operands stay in the L2 cache
  Product scores_;  // C · Bᵀ
  Product before_;  // C · S: [64, state] · [state, heads * head_dim]
  Product inside_;  // [64, 64] · [64, head_dim] a head
  Product states_;  // Bᵀ · x: [state, 64] · [64, heads * head_dim]
};

// The same for one token, by the recurrence: state = exp(dt a) state + dt B ⊗ x, y = C · state + D x.
// xbc: [channels] · dt: [heads] before bias · state: [state_size, heads, head_dim] in and out · y: [heads, head_dim]
void ssd_state_update_cpu(const SsdShape& shape, const float* xbc, const float* dt, const SsdWeights& weights,
                          float* state, float* y);

// The same by the recurrence, token by token: the definition that the products are tested against. f32 only.
// y: [heads, 64, head_dim], of which the first `rows` tokens are written
void ssd_scan_reference(const SsdShape& shape, const float* xbc, const float* dt, size_t dt_stride,
                        const SsdWeights& weights, float* state, float* y, size_t rows = ssd_block);

}  // namespace recalld
