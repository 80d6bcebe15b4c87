/* SPDX-License-Identifier: Apache-2.0
 * The device itself: opening, memory, copies, the one stream, recorded graphs. Uploads pass through
 * a ring of pinned slots, so that the host's buffer is free on return and the stream is not waited
 * for. */
#include "kernels/cuda/common.cuh"

extern "C" {
#include "lib/mem.h"
}

#include <cuda.h>

#include <stdio.h>
#include <string.h>

void cuda_fail(cudaError_t rc, const char *what, const char *file, int line)
{
	die(KERNEL_EXIT_DEVICE, "the GPU failed: %s (%s) in %s at %s:%d", cudaGetErrorString(rc),
	    cudaGetErrorName(rc), what, file, line);
}

static const struct kernel_ops cuda_ops = {
#define K(ret, name, args) cuda_##name,
#include "kernels/kernels.def"
#undef K
};

static int find_device(int device, cudaDeviceProp *p, struct err *e)
{
	int count = 0;
	cudaError_t rc = cudaGetDeviceCount(&count);

	FAIL_IF(rc != cudaSuccess, e, TF_EUNSUPPORTED, "device cuda:%d: no GPU can be used: %s",
		device, cudaGetErrorString(rc));
	FAIL_IF(device < 0 || device >= count, e, TF_EUNSUPPORTED,
		"device cuda:%d: this machine has %d GPU%s, numbered from 0", device, count,
		count == 1 ? "" : "s");
	rc = cudaGetDeviceProperties(p, device);
	FAIL_IF(rc != cudaSuccess, e, TF_EUNSUPPORTED, "device cuda:%d cannot be asked about: %s",
		device, cudaGetErrorString(rc));
	FAIL_IF(p->major < 8, e, TF_EUNSUPPORTED,
		"device cuda:%d: %s has compute capability %d.%d; 8.0 or later is needed", device,
		p->name, p->major, p->minor);
	return TF_OK;
}

static int open_stream(struct cuda_state *s, struct err *e)
{
	cudaError_t rc = cudaSetDevice(s->device);

	if (rc == cudaSuccess)
		rc = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
	for (int i = 0; i < UPLOAD_SLOTS && rc == cudaSuccess; i++) {
		rc = cudaHostAlloc((void **)&s->slot[i], UPLOAD_SLOT_BYTES, cudaHostAllocDefault);
		if (rc == cudaSuccess)
			rc = cudaEventCreateWithFlags(&s->slot_free[i], cudaEventDisableTiming);
	}
	for (int i = 0; i < FETCHES_MOST && rc == cudaSuccess; i++)
		rc = cudaEventCreateWithFlags(&s->fetched[i],
					      cudaEventDisableTiming | cudaEventBlockingSync);
	if (rc == cudaSuccess)
		rc = cudaMalloc(&s->arrived, ARRIVALS * sizeof *s->arrived);
	if (rc == cudaSuccess)
		rc = cudaMemsetAsync(s->arrived, 0, ARRIVALS * sizeof *s->arrived, s->stream);
	FAIL_IF(rc != cudaSuccess, e, TF_EUNSUPPORTED, "device cuda:%d cannot be opened: %s",
		s->device, cudaGetErrorString(rc));
	return TF_OK;
}

/* The driver's tensor-map encoder, without linking libcuda. */
static void *find_encoder(void)
{
	void *f = NULL;
	cudaDriverEntryPointQueryResult found;

	if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault,
					     &found) != cudaSuccess ||
	    found != cudaDriverEntryPointSuccess) {
		(void)cudaGetLastError();
		return NULL;
	}
	return f;
}

int cuda_open(int device, struct kernels **out, struct err *e)
{
	cudaDeviceProp p;
	struct kernels *k;
	struct cuda_state *s;
	int rc;

	TRY(find_device(device, &p, e));
	k = (struct kernels *)xcalloc(1, sizeof *k);
	s = (struct cuda_state *)xcalloc(1, sizeof *s);
	*k = (struct kernels){ &cuda_ops, "cuda", 0, true, true, false, true, s };
	s->device = device;
	s->processors = p.multiProcessorCount;
	s->shared_most = p.sharedMemPerBlockOptin - 8192;
	s->capability = p.major * 10 + p.minor;
	snprintf(s->name, sizeof s->name, "%s", p.name);
	rc = open_stream(s, e);
	if (rc == TF_OK) {
		s->encode_tiled = find_encoder();
		s->hopper = s->capability == 90 && s->encode_tiled;
		s->matmul = matmul_table_new(s, e);
		k->has_fp8 = matmul_has_fp8(s);
		rc = s->matmul ? TF_OK : TF_EUNSUPPORTED;
	}
	if (rc != TF_OK) {
		cuda_close(k);
		return rc;
	}
	snprintf(s->description, sizeof s->description,
		 "%s, compute capability %d.%d, %d multiprocessors, %.0f GiB%s", p.name, p.major,
		 p.minor, p.multiProcessorCount, (double)p.totalGlobalMem / (1 << 30),
		 s->hopper ? ", Hopper attention" : ", portable attention");
	*out = k;
	return TF_OK;
}

static void free_blocks(struct cuda_scratch_block *b)
{
	while (b) {
		struct cuda_scratch_block *older = b->older;

		(void)cudaFree(b->data);
		xfree_(b);
		b = older;
	}
}

void cuda_close(struct kernels *k)
{
	struct cuda_state *s;

	if (!k)
		return;
	s = state_of(k);
	if (s->stream)
		(void)cudaStreamSynchronize(s->stream);
	matmul_table_free(s->matmul);
	cudnn_close(s);
	attention_plans_free(s);
	(void)cudaFree(s->arrived);
	free_blocks(s->scratch);
	free_blocks(s->parts);
	for (int i = 0; i < FETCHES_MOST; i++)
		if (s->fetched[i])
			(void)cudaEventDestroy(s->fetched[i]);
	for (int i = 0; i < UPLOAD_SLOTS; i++) {
		if (s->slot_free[i])
			(void)cudaEventDestroy(s->slot_free[i]);
		if (s->slot[i])
			(void)cudaFreeHost(s->slot[i]);
	}
	if (s->stream)
		(void)cudaStreamDestroy(s->stream);
	xfree_(s);
	xfree_(k);
}

const char *cuda_describe(const struct kernels *k)
{
	return ((const struct cuda_state *)k->state)->description;
}

/* A larger block before the older ones. */
static void grow(struct cuda_state *s, struct cuda_scratch_block **kept, size_t bytes)
{
	struct cuda_scratch_block *b;

	if (s->recording)
		BUG("scratch of %zu bytes is needed while a graph is recorded; run the step once "
		    "before",
		    bytes);
	b = (struct cuda_scratch_block *)xcalloc(1, sizeof *b);
	b->bytes = bytes + bytes / 4 > (size_t)16 << 20 ? bytes + bytes / 4 : (size_t)16 << 20;
	b->older = *kept;
	CUDA(cudaMalloc(&b->data, b->bytes));
	*kept = b;
}

void *cuda_scratch(struct cuda_state *s, size_t bytes)
{
	if (!s->scratch || s->scratch->bytes < bytes)
		grow(s, &s->scratch, bytes);
	return s->scratch->data;
}

void *cuda_parts(struct cuda_state *s, size_t bytes)
{
	if (!s->parts || s->parts->bytes < bytes) {
		grow(s, &s->parts, bytes);
		CUDA(cudaMemsetAsync(s->parts->data, 0xff, s->parts->bytes, s->stream));
	}
	return s->parts->data;
}

void *cuda_alloc(struct kernels *k, size_t bytes)
{
	struct cuda_state *s = state_of(k);
	void *p = NULL;
	cudaError_t rc = cudaMalloc(&p, bytes ? bytes : 1);

	CHECK(!s->recording);
	if (rc == cudaErrorMemoryAllocation) {
		(void)cudaGetLastError();
		return NULL;
	}
	CUDA(rc);
	CUDA(cudaMemsetAsync(p, 0, bytes ? bytes : 1, s->stream));
	return p;
}

void cuda_release(struct kernels *k, void *p)
{
	if (!p)
		return;
	attention_forget(state_of(k), NULL, 0);
	CUDA(cudaStreamSynchronize(state_of(k)->stream));
	CUDA(cudaFree(p));
}

void cuda_upload(struct kernels *k, void *to, const void *host, size_t bytes)
{
	struct cuda_state *s = state_of(k);

	CHECK(!s->recording);
	attention_forget(s, to, bytes);
	for (size_t done = 0, part; done < bytes; done += part) {
		int i = s->slot_next;

		part = bytes - done < UPLOAD_SLOT_BYTES ? bytes - done : UPLOAD_SLOT_BYTES;
		s->slot_next = (i + 1) % UPLOAD_SLOTS;
		CUDA(cudaEventSynchronize(s->slot_free[i]));
		memcpy(s->slot[i], (const char *)host + done, part);
		CUDA(cudaMemcpyAsync((char *)to + done, s->slot[i], part, cudaMemcpyHostToDevice,
				     s->stream));
		CUDA(cudaEventRecord(s->slot_free[i], s->stream));
	}
}

void cuda_download(struct kernels *k, void *host, const void *from, size_t bytes)
{
	struct cuda_state *s = state_of(k);

	CHECK(!s->recording);
	CUDA(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, s->stream));
	CUDA(cudaStreamSynchronize(s->stream));
}

void *cuda_host_alloc(struct kernels *k, size_t bytes)
{
	void *p = NULL;
	cudaError_t rc;

	CUDA(cudaSetDevice(state_of(k)->device));
	rc = cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocDefault);
	if (rc == cudaErrorMemoryAllocation) {
		(void)cudaGetLastError();
		return NULL;
	}
	CUDA(rc);
	return p;
}

void cuda_host_release(struct kernels *k, void *p)
{
	(void)k;
	if (p)
		CUDA(cudaFreeHost(p));
}

void cuda_fetch_begin(struct kernels *k, struct fetch *f, void *host, const void *from,
		      size_t bytes)
{
	struct cuda_state *s = state_of(k);
	int i = 0;

	CHECK(!s->recording);
	while (i < FETCHES_MOST && __atomic_load_n(&s->fetching[i], __ATOMIC_ACQUIRE))
		i++;
	CHECK(i < FETCHES_MOST);
	__atomic_store_n(&s->fetching[i], true, __ATOMIC_RELAXED);
	f->mark = i;
	CUDA(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, s->stream));
	CUDA(cudaEventRecord(s->fetched[i], s->stream));
}

void cuda_fetch_end(struct kernels *k, struct fetch *f)
{
	struct cuda_state *s = state_of(k);

	CHECK(f->mark >= 0 && f->mark < FETCHES_MOST);
	CUDA(cudaSetDevice(s->device)); /* the thread may be a new one */
	CUDA(cudaEventSynchronize(s->fetched[f->mark]));
	__atomic_store_n(&s->fetching[f->mark], false, __ATOMIC_RELEASE);
}

void cuda_copy(struct kernels *k, void *to, const void *from, size_t bytes)
{
	attention_forget(state_of(k), to, bytes);
	CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, state_of(k)->stream));
}

void cuda_zero(struct kernels *k, void *p, size_t bytes)
{
	attention_forget(state_of(k), p, bytes);
	if (bytes)
		CUDA(cudaMemsetAsync(p, 0, bytes, state_of(k)->stream));
}

void cuda_memory(struct kernels *k, size_t *available, size_t *total)
{
	CUDA(cudaSetDevice(state_of(k)->device));
	CUDA(cudaMemGetInfo(available, total));
}

void cuda_sync(struct kernels *k)
{
	CUDA(cudaStreamSynchronize(state_of(k)->stream));
}

void cuda_graph_begin(struct kernels *k)
{
	struct cuda_state *s = state_of(k);

	CHECK(!s->recording);
	CUDA(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal));
	s->recording = true;
}

void *cuda_graph_end(struct kernels *k)
{
	struct cuda_state *s = state_of(k);
	cudaGraph_t graph = NULL;
	cudaGraphExec_t run = NULL;

	CHECK(s->recording);
	CUDA(cudaStreamEndCapture(s->stream, &graph));
	s->recording = false;
	CUDA(cudaGraphInstantiate(&run, graph, 0));
	CUDA(cudaGraphDestroy(graph));
	CUDA(cudaGraphUpload(run, s->stream));
	return run;
}

void cuda_graph_run(struct kernels *k, void *graph)
{
	attention_forget(state_of(k), NULL, 0);
	CUDA(cudaGraphLaunch((cudaGraphExec_t)graph, state_of(k)->stream));
}

void cuda_graph_release(struct kernels *k, void *graph)
{
	if (!graph)
		return;
	CUDA(cudaStreamSynchronize(state_of(k)->stream));
	CUDA(cudaGraphExecDestroy((cudaGraphExec_t)graph));
}
