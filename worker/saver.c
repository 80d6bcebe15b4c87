/* SPDX-License-Identifier: Apache-2.0
 * Writing checkpoints in a thread; see saver.h. The thread owns the copy, `rc` and `error` from
 * saver_begin until it sets `done`; it is joined before anybody looks at them. */
#include "config.h"
#include "worker/saver.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/checkpoints.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

struct saver {
	struct saver_options o;
	uint64_t step; /* of what is being written */
	pthread_t thread;
	bool busy; /* there is an outcome to ask for */
	bool threaded; /* and a thread to join */
	atomic_bool done;
	int rc;
	struct err error;
	int64_t began_ms, ended_ms;
};

struct saver *saver_new(const struct saver_options *o)
{
	struct saver *s = xcalloc(1, sizeof *s);

	s->o = *o;
	return s;
}

void saver_free(struct saver *s)
{
	if (s && s->threaded)
		pthread_join(s->thread, NULL);
	xfree(s);
}

static void *write_copy(void *arg)
{
	struct saver *s = arg;

	s->rc = s->o.write(s->o.copy, s->step, &s->error);
	if (s->rc == 0)
		s->rc = checkpoints_prune(s->o.folder, s->o.keep_last, s->o.keep_every, &s->error);
	s->ended_ms = clock_mono_ms();
	atomic_store(&s->done, true);
	return NULL;
}

void saver_begin(struct saver *s, uint64_t step)
{
	sigset_t all, before;

	CHECK(!s->busy);
	s->began_ms = clock_mono_ms();
	s->step = step;
	s->error = (struct err)ERR_INIT;
	atomic_store(&s->done, false);
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
	*step = s->step;
	*took_ms = s->ended_ms - s->began_ms;
	return s->rc < 0 ? err_set(e, s->rc, "%s", s->error.text) : 0;
}

int saver_tell(struct saver *s, struct job *job, struct err *e)
{
	uint64_t step;
	int64_t took_ms;
	int rc = saver_end(s, &step, &took_ms, e);

	if (rc == 0) {
		log_info("step=%" PRIu64 " saved ms=%" PRId64, step, took_ms);
		return 0;
	}
	log_error("step=%" PRIu64 " not saved: %s", step, e->text);
	job_gauge(job, "save_failed", (double)step);
	return rc;
}

void saver_settle(struct saver *s, struct job *job)
{
	struct err e = ERR_INIT;

	if (s && saver_is_busy(s))
		saver_tell(s, job, &e);
}
