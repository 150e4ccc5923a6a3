// Runs one .tflite on ARM64 through LiteRT's C interface and leaves: mobileprune/benchmark/arm64.py is its other half.
//
//   arm64_runner MODEL INPUTS OUTPUTS FACTS THREADS RUNS PROFILE
//
// INPUTS holds the raw bytes of the inputs of one invocation after another; OUTPUTS gets the raw bytes of all outputs of
// each. The last inputs are then run RUNS more times. FACTS gets JSON with types, shapes, quantization and times (of the
// clock, of the processor) in microseconds; with PROFILE=1 it also lists the operators of one more invocation as the delegate calls them. The model
// is hostile: nothing that it names gets into FACTS unfiltered, and whoever started this expects it to crash or hang.
//
// The wheel that holds libLiteRt.so ships no headers. What is declared here is the part of LiteRT's public C interface
// (litert/c/*.h, Apache-2.0, declared stable there) that is called below.

#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct LiteRtHandle* Handle;

typedef struct {
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} Layout;

typedef struct {
  int element_type;
  Layout layout;
} TensorType;

typedef struct {
  float scale;
  int64_t zero_point;
} PerTensor;

typedef struct {
  const char* tag;
  int event_type;
  uint64_t start_us;
  uint64_t elapsed_us;
  size_t memory[6];
  uint64_t metadata[2];
  int source;
} Event;

typedef struct {
  int tag;
  struct {
    int type;
    int64_t value;
  } any;
} EnvironmentOption;

_Static_assert(sizeof(TensorType) == 72 && sizeof(PerTensor) == 16 && sizeof(EnvironmentOption) == 24, "LiteRT's ABI");

int LiteRtCreateEnvironment(int, const EnvironmentOption*, Handle*);
int LiteRtCreateModelFromFile(Handle environment, const char*, Handle* model);
int LiteRtCreateOptions(Handle*);
int LiteRtSetOptionsHardwareAccelerators(Handle options, int);
int LiteRtCreateOpaqueOptions(const char*, void*, void (*)(void*), Handle*);
int LiteRtAddOpaqueOptions(Handle options, Handle opaque);
int LiteRtCreateCompiledModel(Handle environment, Handle model, Handle options, Handle*);
int LiteRtCompiledModelIsFullyAccelerated(Handle compiled, bool*);
int LiteRtCompiledModelResizeInputTensor(Handle compiled, size_t signature, size_t input, const int*, size_t);
int LiteRtGetCompiledModelOutputTensorLayouts(Handle compiled, size_t signature, size_t, Layout*, bool);
int LiteRtGetModelSignature(Handle model, size_t, Handle*);
int LiteRtGetNumSignatureInputs(Handle signature, size_t*);
int LiteRtGetNumSignatureOutputs(Handle signature, size_t*);
int LiteRtGetSignatureInputTensorByIndex(Handle signature, size_t, Handle*);
int LiteRtGetSignatureOutputTensorByIndex(Handle signature, size_t, Handle*);
int LiteRtGetTensorIndex(Handle tensor, uint32_t*);
int LiteRtGetRankedTensorType(Handle tensor, TensorType*);
int LiteRtGetQuantizationTypeId(Handle tensor, int*);
int LiteRtGetPerTensorQuantization(Handle tensor, PerTensor*);
int LiteRtCreateTensorBufferFromHostMemory(const TensorType*, void*, size_t, void (*)(void*), Handle*);
int LiteRtRunCompiledModel(Handle compiled, size_t signature, size_t, Handle*, size_t, Handle*);
int LiteRtCompiledModelGetProfiler(Handle compiled, Handle*);
int LiteRtStartProfiler(Handle);
int LiteRtStopProfiler(Handle);
int LiteRtGetNumProfilerEvents(Handle, int*);
int LiteRtGetProfilerEvents(Handle, int, Event*);

enum {
  kCpu = 1,
  kAutoRegisterAccelerators = 24,
  kInteger = 2,
  kPerTensor = 1,
  kOperatorInvoke = 1 << 1,
  kDelegateOperator = 1 << 2,
  kDelegateProfiledOperator = 1 << 3,
  kMostTensors = 64,
  kAlignment = 64,
};
// More is no classifier's input or output; a hostile shape must not become an allocation.
static const size_t kMostBytes = (size_t)1 << 31;

typedef struct {
  TensorType type;
  PerTensor quantization;
  uint32_t index;
  size_t bytes;
  void* memory;
  Handle buffer;
} Tensor;

static void fail(const char* what, long code) {
  fprintf(stderr, "arm64_runner: %s (%ld)\n", what, code);
  exit(3);
}

static void check(int status, const char* what) {
  if (status != 0) fail(what, status);
}

static double clock_us(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

// What malloc has handed out. Resident memory would count the emulator's own.
static size_t heap_bytes(void) {
  struct mallinfo2 heap = mallinfo2();
  return heap.uordblks + heap.hblkhd;
}

static size_t element_bytes(int type) {
  switch (type) {
    case 3: case 6: case 9: return 1;              // uint8, bool, int8
    case 7: case 10: case 17: case 19: return 2;   // int16, float16, uint16, bfloat16
    case 1: case 2: case 16: return 4;             // float32, int32, uint32
    case 4: case 11: case 13: return 8;            // int64, float64, uint64
    default: fail("an input or output has an element type that is no plain number", type);
  }
  return 0;
}

static void leave(void* memory) { (void)memory; }

static void add_options(Handle options, const char* kind, const char* text) {
  Handle opaque;
  check(LiteRtCreateOpaqueOptions(kind, strdup(text), free, &opaque), "no options");
  check(LiteRtAddOpaqueOptions(options, opaque), "no options");
}

static Tensor describe(Handle handle) {
  Tensor tensor = {0};
  check(LiteRtGetRankedTensorType(handle, &tensor.type), "an input or output has no fixed rank");
  if (tensor.type.layout.rank > 8) fail("an input or output has too many dimensions", tensor.type.layout.rank);
  check(LiteRtGetTensorIndex(handle, &tensor.index), "an input or output has no index");
  int kind = 0;
  check(LiteRtGetQuantizationTypeId(handle, &kind), "no quantization");
  if (kind == kPerTensor) check(LiteRtGetPerTensorQuantization(handle, &tensor.quantization), "no quantization");
  return tensor;
}

static void give_memory(Tensor* tensor) {
  tensor->type.layout.has_strides = 0;
  tensor->bytes = element_bytes(tensor->type.element_type);
  for (unsigned int i = 0; i < tensor->type.layout.rank; i++) {
    int32_t size = tensor->type.layout.dimensions[i];
    if (size <= 0 || tensor->bytes > kMostBytes / size) fail("an input or output has an impossible size", size);
    tensor->bytes *= size;
  }
  // The runtime may read whole vectors past the end.
  size_t room = (tensor->bytes / kAlignment + 2) * kAlignment;
  tensor->memory = aligned_alloc(kAlignment, room);
  if (!tensor->memory) fail("no memory for a tensor", (long)room);
  memset(tensor->memory, 0, room);
  check(LiteRtCreateTensorBufferFromHostMemory(&tensor->type, tensor->memory, tensor->bytes, leave, &tensor->buffer),
        "no tensor buffer");
}

static void write_tensors(FILE* facts, const char* name, const Tensor* tensors, size_t count) {
  fprintf(facts, "\"%s\": [", name);
  for (size_t i = 0; i < count; i++) {
    const Tensor* tensor = &tensors[i];
    fprintf(facts, "%s{\"index\": %u, \"type\": %d, \"scale\": %.9g, \"zero_point\": %lld, \"shape\": [", i ? ", " : "",
            tensor->index, tensor->type.element_type, tensor->quantization.scale,
            (long long)tensor->quantization.zero_point);
    for (unsigned int k = 0; k < tensor->type.layout.rank; k++)
      fprintf(facts, "%s%d", k ? ", " : "", tensor->type.layout.dimensions[k]);
    fprintf(facts, "]}");
  }
  fprintf(facts, "], ");
}

static void write_operators(FILE* facts, Handle profiler) {
  int count = 0;
  check(LiteRtGetNumProfilerEvents(profiler, &count), "no profile");
  Event* events = calloc(count + 1, sizeof(Event));
  if (!events) fail("no memory for the profile", count);
  check(LiteRtGetProfilerEvents(profiler, count, events), "no profile");
  fprintf(facts, "\"operators\": [");
  bool first = true;
  for (int i = 0; i < count; i++) {
    bool delegated = events[i].event_type & (kDelegateOperator | kDelegateProfiledOperator);
    if (!delegated && !(events[i].event_type & kOperatorInvoke)) continue;
    char tag[128];
    snprintf(tag, sizeof tag, "%s", events[i].tag);  // a custom op's name is the model's word
    for (char* c = tag; *c; c++)
      if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\') *c = '?';
    fprintf(facts, "%s[\"%s\", %s, %llu]", first ? "" : ", ", tag, delegated ? "true" : "false",
            (unsigned long long)events[i].elapsed_us);
    first = false;
  }
  fprintf(facts, "], ");
  free(events);
}

int main(int count, char** words) {
  if (count != 8) fail("usage: arm64_runner MODEL INPUTS OUTPUTS FACTS THREADS RUNS PROFILE", count);
  int runs = atoi(words[6]), profile = atoi(words[7]);
  FILE* source = fopen(words[2], "rb");
  FILE* sink = fopen(words[3], "wb");
  FILE* facts = fopen(words[4], "w");
  if (!source || !sink || !facts) fail("a file cannot be opened", 0);

  size_t heap_before = heap_bytes();
  double begin = clock_us(CLOCK_MONOTONIC);
  EnvironmentOption cpu_only = {kAutoRegisterAccelerators, {kInteger, kCpu}};
  Handle environment, model, options, compiled, signature, profiler = NULL;
  check(LiteRtCreateEnvironment(1, &cpu_only, &environment), "no environment");
  check(LiteRtCreateModelFromFile(environment, words[1], &model), "the runtime refused the file");
  check(LiteRtCreateOptions(&options), "no options");
  check(LiteRtSetOptionsHardwareAccelerators(options, kCpu), "no options");
  char text[64];
  snprintf(text, sizeof text, "num_threads = %d\n", atoi(words[5]));
  add_options(options, "xnnpack", text);
  if (profile) add_options(options, "runtime_options_string", "enable_profiling = true\n");
  check(LiteRtCreateCompiledModel(environment, model, options, &compiled), "the file could not be prepared");
  double init_us = clock_us(CLOCK_MONOTONIC) - begin;

  Tensor inputs[kMostTensors], outputs[kMostTensors];
  Handle input_buffers[kMostTensors], output_buffers[kMostTensors], tensor;
  size_t input_count, output_count;
  check(LiteRtGetModelSignature(model, 0, &signature), "the file has no signature");
  check(LiteRtGetNumSignatureInputs(signature, &input_count), "no inputs");
  check(LiteRtGetNumSignatureOutputs(signature, &output_count), "no outputs");
  if (input_count > kMostTensors || output_count > kMostTensors) fail("too many inputs or outputs", input_count);
  for (size_t i = 0; i < input_count; i++) {
    check(LiteRtGetSignatureInputTensorByIndex(signature, i, &tensor), "no input");
    inputs[i] = describe(tensor);
    Layout* layout = &inputs[i].type.layout;
    bool open = false;
    for (unsigned int k = 0; k < layout->rank; k++)
      if (layout->dimensions[k] < 0) layout->dimensions[k] = 1, open = true;
    if (open)
      check(LiteRtCompiledModelResizeInputTensor(compiled, 0, i, layout->dimensions, layout->rank),
            "an input of open size could not be set to 1");
    give_memory(&inputs[i]);
    input_buffers[i] = inputs[i].buffer;
  }
  Layout layouts[kMostTensors];
  check(LiteRtGetCompiledModelOutputTensorLayouts(compiled, 0, output_count, layouts, true),
        "the file could not be prepared");
  for (size_t i = 0; i < output_count; i++) {
    check(LiteRtGetSignatureOutputTensorByIndex(signature, i, &tensor), "no output");
    outputs[i] = describe(tensor);
    outputs[i].type.layout = layouts[i];
    give_memory(&outputs[i]);
    output_buffers[i] = outputs[i].buffer;
  }

  bool accelerated = false;
  check(LiteRtCompiledModelIsFullyAccelerated(compiled, &accelerated), "no accelerator");
  fprintf(facts, "{\"init_us\": %.3f, \"fully_accelerated\": %s, ", init_us, accelerated ? "true" : "false");
  write_tensors(facts, "inputs", inputs, input_count);
  write_tensors(facts, "outputs", outputs, output_count);

  fprintf(facts, "\"invocations\": [");
  size_t heap_peak = 0;
  long invocations = 0;
  for (bool reading = true; reading || runs-- > 0;) {
    size_t got = 0, wanted = 0;
    for (size_t i = 0; reading && i < input_count; i++) {
      got += fread(inputs[i].memory, 1, inputs[i].bytes, source);
      wanted += inputs[i].bytes;
    }
    if (reading && got < wanted) {
      if (got) fail("the inputs end in the middle of one; bytes left over", (long)got);
      if (!invocations) fail("there are no inputs", 0);
      reading = false;
      continue;
    }
    double start = clock_us(CLOCK_MONOTONIC), cpu_start = clock_us(CLOCK_PROCESS_CPUTIME_ID);
    check(LiteRtRunCompiledModel(compiled, 0, input_count, input_buffers, output_count, output_buffers),
          "the file failed to run");
    double took = clock_us(CLOCK_MONOTONIC) - start, cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu_start;
    fprintf(facts, "%s[%.3f, %.3f]", invocations++ ? ", " : "", took, cpu);
    if (heap_bytes() > heap_peak) heap_peak = heap_bytes();
    for (size_t i = 0; reading && i < output_count; i++)
      if (fwrite(outputs[i].memory, 1, outputs[i].bytes, sink) != outputs[i].bytes) fail("no room for outputs", 0);
    if (reading && !wanted) reading = false;  // a file without inputs runs once
  }
  fprintf(facts, "], ");
  if (profile) {
    check(LiteRtCompiledModelGetProfiler(compiled, &profiler), "no profiler");
    check(LiteRtStartProfiler(profiler), "no profiler");
    check(LiteRtRunCompiledModel(compiled, 0, input_count, input_buffers, output_count, output_buffers),
          "the file failed to run");
    check(LiteRtStopProfiler(profiler), "no profiler");
    write_operators(facts, profiler);
  }
  fprintf(facts, "\"heap_bytes\": %zu}\n", heap_peak > heap_before ? heap_peak - heap_before : 0);
  if (fclose(sink) || fclose(facts)) fail("no room for the results", 0);
  // The process ends here: what taking the runtime apart could break is of no interest.
  fflush(stderr);
  _Exit(0);
}
