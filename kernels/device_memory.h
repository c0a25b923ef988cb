// Owners of what CUDA hands out: device and pinned memory, streams, events, graphs. Each is move-only and frees what it
// owns.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <utility>

#include "kernels/scratch_buffers.h"

namespace recalld::cuda {

// A failure that is told here must not come from a later call again.
inline cudaError_t told(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

// Memory of the device, at a multiple of 256 bytes.
class DeviceBuffer {
 public:
  static cudaError_t allocate(size_t bytes, DeviceBuffer& buffer) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes > 0 ? bytes : 1);
    if (status == cudaSuccess) {
      buffer.data_.reset(data);
      buffer.bytes_ = bytes;
    }
    return told(status);
  }
  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_.get()) + offset_bytes);
  }

 private:
  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

// Memory of the host that the device can read and write, at a multiple of 4 KiB.
class PinnedBuffer {
 public:
  static cudaError_t allocate(size_t bytes, PinnedBuffer& buffer) {
    void* data = nullptr;
    const cudaError_t status = cudaHostAlloc(&data, bytes > 0 ? bytes : 1, cudaHostAllocMapped);
    if (status == cudaSuccess) {
      buffer.data_.reset(data);
      buffer.bytes_ = bytes;
    }
    return told(status);
  }
  size_t bytes() const { return bytes_; }
  // The host and the device know it by one address (unified addressing).
  template <class T>
  T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_.get()) + offset_bytes);
  }

 private:
  struct Free {
    void operator()(void* data) const { cudaFreeHost(data); }
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

// The model has pinned memory from here alone (tools/check.sh), since there is text and K/V in all of it.
using PinnedScratch = ScratchBuffers<PinnedBuffer>;

class Stream {
 public:
  static cudaError_t open(Stream& stream) {
    cudaStream_t handle = nullptr;
    const cudaError_t status = cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking);
    if (status == cudaSuccess) stream.handle_.reset(handle);
    return told(status);
  }
  cudaStream_t get() const { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(cudaStream_t handle) const { cudaStreamDestroy(handle); }
  };
  std::unique_ptr<CUstream_st, Destroy> handle_;
};

class Event {
 public:
  static cudaError_t open(Event& event) {
    cudaEvent_t handle = nullptr;
    const cudaError_t status = cudaEventCreateWithFlags(&handle, cudaEventDisableTiming);
    if (status == cudaSuccess) event.handle_.reset(handle);
    return told(status);
  }
  cudaError_t record(cudaStream_t stream) const { return cudaEventRecord(handle_.get(), stream); }
  cudaError_t wait() const { return cudaEventSynchronize(handle_.get()); }

 private:
  struct Destroy {
    void operator()(cudaEvent_t handle) const { cudaEventDestroy(handle); }
  };
  std::unique_ptr<CUevent_st, Destroy> handle_;
};

// Work that was captured once and is launched again and again.
class Graph {
 public:
  // Captures what `work` (returning cudaError_t) enqueues on the stream.
  template <class Work>
  static cudaError_t capture(cudaStream_t stream, Work work, Graph& graph) {
    Whole whole;
    cudaError_t status = whole.create();
    if (status == cudaSuccess) status = capture_into(whole.graph, stream, work);
    return told(status == cudaSuccess ? instantiate(whole.graph, graph) : status);
  }

  // The same behind a condition: `condition(handle)` enqueues one kernel, which gives the handle a value, and the work
  // is done only where that is not 0.
  template <class Condition, class Work>
  static cudaError_t capture_if(cudaStream_t stream, Condition condition, Work work, Graph& graph) {
    Whole whole;
    cudaGraphConditionalHandle handle{};
    cudaError_t status = whole.create();
    if (status == cudaSuccess)
      status = cudaGraphConditionalHandleCreate(&handle, whole.graph, 0, cudaGraphCondAssignDefault);
    if (status == cudaSuccess) status = capture_into(whole.graph, stream, [&] { return condition(handle); });
    cudaGraphNode_t kernel = nullptr, branch = nullptr;
    size_t nodes = 1;
    if (status == cudaSuccess) status = cudaGraphGetNodes(whole.graph, &kernel, &nodes);
    cudaGraphNodeParams params{};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = handle;
    params.conditional.type = cudaGraphCondTypeIf;
    params.conditional.size = 1;
    if (status == cudaSuccess) status = cudaGraphAddNode(&branch, whole.graph, &kernel, nullptr, 1, &params);
    if (status == cudaSuccess) status = capture_into(params.conditional.phGraph_out[0], stream, work);
    return told(status == cudaSuccess ? instantiate(whole.graph, graph) : status);
  }

  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(handle_.get(), stream); }

 private:
  struct Whole {
    cudaGraph_t graph = nullptr;
    cudaError_t create() { return cudaGraphCreate(&graph, 0); }
    Whole() = default;
    Whole(const Whole&) = delete;
    Whole& operator=(const Whole&) = delete;
    ~Whole() {
      // A capture that failed may have taken the graph along: then this fails too, and is no error of a later call.
      if (graph) told(cudaGraphDestroy(graph));
    }
  };
  template <class Work>
  static cudaError_t capture_into(cudaGraph_t graph, cudaStream_t stream, Work work) {
    const cudaError_t begun =
        cudaStreamBeginCaptureToGraph(stream, graph, nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal);
    if (begun != cudaSuccess) return begun;
    const cudaError_t enqueued = work();
    cudaGraph_t captured = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &captured);
    return enqueued != cudaSuccess ? enqueued : ended;
  }
  static cudaError_t instantiate(cudaGraph_t whole, Graph& graph) {
    cudaGraphExec_t ready = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&ready, whole, 0);
    if (status == cudaSuccess) graph.handle_.reset(ready);
    return status;
  }
  struct Destroy {
    void operator()(cudaGraphExec_t handle) const { cudaGraphExecDestroy(handle); }
  };
  std::unique_ptr<CUgraphExec_st, Destroy> handle_;
};

}  // namespace recalld::cuda
