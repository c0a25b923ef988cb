// Which instruction set the CPU kernels use.
#pragma once

namespace recalld {

enum class CpuIsa { sse4, avx2, native };

// The widest set that kernels may use, from RECALLD_CPU_ISA (sse4, avx2 or native; anything else means native), read
// once. The first call also tells Highway and oneDNN, so every kernel calls this before it dispatches: a test can so
// run the code paths of an older machine. Any thread may call.
CpuIsa cpu_isa();

// Whether matrix products with bf16 inputs run on instructions made for them (AVX-512 BF16 or AMX).
bool cpu_multiplies_bf16();

// "AMX", "AVX-512 BF16", "AVX-512", "AVX2" or "SSE4": what matrix products run on; for logs.
const char* cpu_isa_name();

}  // namespace recalld
