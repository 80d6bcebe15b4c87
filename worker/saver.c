/* SPDX-License-Identifier: Apache-2.0
 * Writing checkpoints in a thread; see saver.h. The thread owns the copy, `rc` and `error` from
 * saver_begin until it sets `done`; it is joined before anybody looks at them. */
#include "config.h"
#include "worker/saver.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "store/checkpoints.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

struct saver {
	struct saver_options o;
	struct checkpoint_copy *copy;
	pthread_t thread;
	bool busy; /* there is an outcome to ask for */
	bool threaded; /* and a thread to join */
	atomic_bool done;
	int rc;
	struct err error;
	int64_t began_ms, ended_ms;
};

int saver_new(const struct checkpoint *c, const struct saver_options *o, struct saver **out,
	      struct err *e)
{
	struct saver *s = xcalloc(1, sizeof *s);
	int rc = checkpoint_copy_new(c, &s->copy, e);

	s->o = *o;
	if (rc < 0)
		xfree(s);
	else
		*out = s;
	return rc;
}

void saver_free(struct saver *s)
{
	if (!s)
		return;
	if (s->threaded)
		pthread_join(s->thread, NULL);
	checkpoint_copy_free(s->copy);
	xfree(s);
}

static void *write_copy(void *arg)
{
	struct saver *s = arg;

	s->rc = checkpoint_copy_write(s->copy, s->o.folder, s->o.facts, &s->error);
	if (s->rc == 0)
		s->rc = checkpoints_prune(s->o.folder, s->o.keep_last, s->o.keep_every, &s->error);
	s->ended_ms = clock_mono_ms();
	atomic_store(&s->done, true);
	return NULL;
}

void saver_begin(struct saver *s, const struct checkpoint *c, double score)
{
	sigset_t all, before;

	CHECK(!s->busy);
	s->began_ms = clock_mono_ms();
	s->error = (struct err)ERR_INIT;
	atomic_store(&s->done, false);
	checkpoint_copy_take(s->copy, c, score);
	sigfillset(&all); /* signals are for the main thread */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	s->threaded = pthread_create(&s->thread, NULL, write_copy, s) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	s->busy = true;
	if (!s->threaded) /* a machine short of threads: the run waits, but nothing is lost */
		write_copy(s);
}

bool saver_is_done(struct saver *s)
{
	return s->busy && atomic_load(&s->done);
}

bool saver_is_busy(const struct saver *s)
{
	return s->busy;
}

int saver_end(struct saver *s, uint64_t *step, int64_t *took_ms, struct err *e)
{
	CHECK(s->busy);
	if (s->threaded)
		pthread_join(s->thread, NULL);
	s->busy = s->threaded = false;
	*step = s->copy->of.step;
	*took_ms = s->ended_ms - s->began_ms;
	return s->rc < 0 ? err_set(e, s->rc, "%s", s->error.text) : 0;
}
