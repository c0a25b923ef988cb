// Owners of what CUDA hands out: device and pinned memory, streams, events, graphs. Each is move-only and frees what it
// owns.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <utility>

namespace recalld::cuda {

// Memory of the device, at a multiple of 256 bytes.
class DeviceBuffer {
 public:
  static cudaError_t allocate(size_t bytes, DeviceBuffer& buffer) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes > 0 ? bytes : 1);
    if (status == cudaSuccess) {
      buffer.data_.reset(data);
      buffer.bytes_ = bytes;
    } else {
      cudaGetLastError();  // it is told here, and must not come from a later call again
    }
    return status;
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
    } else {
      cudaGetLastError();
    }
    return status;
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

class Stream {
 public:
  static cudaError_t open(Stream& stream) {
    cudaStream_t handle = nullptr;
    const cudaError_t status = cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking);
    if (status == cudaSuccess) stream.handle_.reset(handle);
    return status;
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
    return status;
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
    cudaError_t status = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (status != cudaSuccess) return status;
    const cudaError_t enqueued = work();
    cudaGraph_t captured = nullptr;
    status = cudaStreamEndCapture(stream, &captured);
    cudaGraphExec_t ready = nullptr;
    if (enqueued == cudaSuccess && status == cudaSuccess) status = cudaGraphInstantiate(&ready, captured, 0);
    if (captured) cudaGraphDestroy(captured);
    if (enqueued != cudaSuccess) return enqueued;
    if (status == cudaSuccess) graph.handle_.reset(ready);
    return status;
  }
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(handle_.get(), stream); }

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t handle) const { cudaGraphExecDestroy(handle); }
  };
  std::unique_ptr<CUgraphExec_st, Destroy> handle_;
};

}  // namespace recalld::cuda
