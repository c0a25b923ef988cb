#include "kernels/cpu_isa.h"

#include <hwy/targets.h>

#include <cstdlib>
#include <string_view>

#include "dnnl.hpp"

namespace recalld {
namespace {

CpuIsa read_and_apply() {
  const char* value = std::getenv("RECALLD_CPU_ISA");
  const std::string_view wanted = value == nullptr ? "native" : value;
  const CpuIsa isa = wanted == "sse4" ? CpuIsa::sse4 : wanted == "avx2" ? CpuIsa::avx2 : CpuIsa::native;
  if (isa == CpuIsa::native) return isa;
  // Highway numbers its x86 targets so that a wider one has a lower bit.
  const int64_t narrowest_allowed = isa == CpuIsa::avx2 ? HWY_AVX2 : HWY_SSE4;
  hwy::DisableTargets(narrowest_allowed - 1);
  // oneDNN refuses a change after its first primitive; then nothing may have run before us, which is our own mistake.
  dnnl::set_max_cpu_isa(isa == CpuIsa::avx2 ? dnnl::cpu_isa::avx2 : dnnl::cpu_isa::sse41);
  return isa;
}

dnnl::cpu_isa effective() {
  cpu_isa();
  return dnnl::get_effective_cpu_isa();
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa isa = read_and_apply();
  return isa;
}

bool cpu_multiplies_bf16() {
  const dnnl::cpu_isa isa = effective();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

const char* cpu_isa_name() {
  switch (effective()) {
    case dnnl::cpu_isa::avx512_core_amx:
      return "AMX";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX-512 BF16";
    case dnnl::cpu_isa::avx512_core_vnni:
    case dnnl::cpu_isa::avx512_core:
    case dnnl::cpu_isa::avx512_mic_4ops:
    case dnnl::cpu_isa::avx512_mic:
      return "AVX-512";
    case dnnl::cpu_isa::avx2_vnni:
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    default:
      return "SSE4";
  }
}

}  // namespace recalld
