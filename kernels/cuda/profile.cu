/* SPDX-License-Identifier: Apache-2.0
 * A second table of operations, each wrapped in a pair of events, that tells where a step's time
 * goes. The waits between operations are not counted, so the rows add up to less than a step. */
#include "kernels/cuda/common.cuh"

extern "C" {
#include "lib/mem.h"
}

#include <type_traits>

enum row {
#define K(ret, name, args) ROW_##name,
#include "kernels/kernels.def"
#undef K
	ROWS
};

static const char *const row_name[ROWS] = {
#define K(ret, name, args) #name,
#include "kernels/kernels.def"
#undef K
};

struct span {
	int row;
	cudaEvent_t begin, end;
};

struct profile {
	const struct kernel_ops *plain;
	struct span *span;
	size_t count, room;
};

static cudaEvent_t mark(struct cuda_state *s)
{
	cudaEvent_t at;

	CUDA(cudaEventCreate(&at));
	CUDA(cudaEventRecord(at, s->stream));
	return at;
}

static void span_begin(struct cuda_state *s, int row)
{
	struct profile *p = s->profile;

	if (p->count == p->room) {
		p->room = p->room ? 2 * p->room : 4096;
		p->span = (struct span *)xrealloc(p->span, p->room, sizeof *p->span);
	}
	p->span[p->count].row = row;
	p->span[p->count].begin = mark(s);
}

static void span_end(struct cuda_state *s)
{
	struct profile *p = s->profile;

	p->span[p->count++].end = mark(s);
}

/* An operation between two marks. While a graph is recorded nothing can be timed. */
template <typename T, T F, int ROW>
struct timed;

template <typename R, typename... A, R (*F)(struct kernels *, A...), int ROW>
struct timed<R (*)(struct kernels *, A...), F, ROW> {
	static R call(struct kernels *k, A... a)
	{
		struct cuda_state *s = state_of(k);

		if (s->recording)
			return F(k, a...);
		span_begin(s, ROW);
		if constexpr (std::is_void<R>::value) {
			F(k, a...);
			span_end(s);
		} else {
			R result = F(k, a...);

			span_end(s);
			return result;
		}
	}
};

static const struct kernel_ops timed_ops = {
#define K(ret, name, args) timed<decltype(&cuda_##name), &cuda_##name, ROW_##name>::call,
#include "kernels/kernels.def"
#undef K
};

void cuda_profile_begin(struct kernels *k)
{
	struct cuda_state *s = state_of(k);

	CHECK(!s->profile && !s->recording);
	s->profile = (struct profile *)xcalloc(1, sizeof *s->profile);
	s->profile->plain = k->ops;
	k->ops = &timed_ops;
}

void cuda_profile_end(struct kernels *k, kernels_profile_row *row, void *arg)
{
	struct cuda_state *s = state_of(k);
	struct profile *p = s->profile;
	int64_t calls[ROWS] = { 0 };
	double ms[ROWS] = { 0 };

	CHECK(p);
	CUDA(cudaStreamSynchronize(s->stream));
	for (size_t i = 0; i < p->count; i++) {
		float took = 0;

		CUDA(cudaEventElapsedTime(&took, p->span[i].begin, p->span[i].end));
		CUDA(cudaEventDestroy(p->span[i].begin));
		CUDA(cudaEventDestroy(p->span[i].end));
		calls[p->span[i].row]++;
		ms[p->span[i].row] += (double)took;
	}
	for (int i = 0; i < ROWS; i++)
		if (calls[i])
			row(arg, row_name[i], calls[i], ms[i]);
	k->ops = p->plain;
	xfree_(p->span);
	xfree_(p);
	s->profile = NULL;
}
