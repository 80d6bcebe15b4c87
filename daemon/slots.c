/* SPDX-License-Identifier: Apache-2.0
 * Draining slots, by people and by what the driver tells; see slots.h. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/spawn.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INITIAL_PID_NAMESPACE "pid:[4026531836]" /* PROC_PID_INIT_INO of the kernel */
#define NOT_LOOKED_AT "it was not looked at yet"

/* ---------------------------------------------------------------- names */

const char *slot_name(const struct daemon *d, size_t i, char name[GPU_NAME_MAX])
{
	if (i >= LIMIT_SLOTS)
		return i - LIMIT_SLOTS < d->machine.gpus ? d->machine.gpu[i - LIMIT_SLOTS].name
							 : NULL;
	if (i >= d->machine.slots)
		return NULL;
	snprintf(name, GPU_NAME_MAX, "cpu%zu", i);
	return name;
}

int slot_find(const struct daemon *d, const char *wanted)
{
	char room[GPU_NAME_MAX];

	for (size_t i = 0; i < SLOTS_MAX; i++) {
		const char *name = slot_name(d, i, room);

		if (name && strcmp(name, wanted) == 0)
			return (int)i;
	}
	return -1;
}

struct slot *slot_of_gpu(struct daemon *d, size_t gpu)
{
	return &d->slot[LIMIT_SLOTS + gpu];
}

/* ---------------------------------------------------------------- on record */

static void forget_drain(struct slot *s)
{
	s->drained = false;
	s->reason[0] = s->by[0] = 0;
	s->since = 0;
}

static int load_slot(void *arg, const char *name, const Tf__SlotRecord *r)
{
	struct daemon *d = arg;
	int i = slot_find(d, name);
	struct slot *s = i < 0 ? NULL : &d->slot[i];

	if (!s)
		return 0; /* one of other options, or not there today */
	s->drained = r->drained;
	snprintf(s->reason, sizeof s->reason, "%s", r->reason ? r->reason : "");
	snprintf(s->by, sizeof s->by, "%s", r->by ? r->by : "");
	s->since = r->since;
	s->ecc_accepted = r->ecc_accepted;
	return 0;
}

int slots_load(struct daemon *d, struct err *e)
{
	for (size_t i = 0; i < SLOTS_MAX; i++)
		forget_drain(&d->slot[i]);
	TRY(slots_each(d->state, load_slot, d, e));
	slots_judge(d);
	return 0;
}

static int put_on_record(struct daemon *d, size_t i, const struct slot *s, struct err *e)
{
	Tf__SlotRecord r = TF__SLOT_RECORD__INIT;
	char room[GPU_NAME_MAX];
	const char *name = slot_name(d, i, room);

	if (i >= LIMIT_SLOTS) {
		struct gpu *g = &d->machine.gpu[i - LIMIT_SLOTS];

		r.device = g->device;
		r.uuid = *g->uuid && s->watched ? g->uuid : NULL;
		r.has_memory = true;
		r.memory = g->memory;
	}
	r.has_drained = r.has_since = r.has_ecc_accepted = true;
	r.drained = s->drained;
	r.reason = *s->reason ? (char *)s->reason : NULL;
	r.by = *s->by ? (char *)s->by : NULL;
	r.since = s->since;
	r.ecc_accepted = s->ecc_accepted;
	return slot_put(d->state, name, &r, e);
}

int slot_remember(struct daemon *d, size_t gpu, struct err *e)
{
	const char *name = d->machine.gpu[gpu].name;
	Tf__SlotRecord *r = NULL;

	if (slot_get(d->state, name, &r, NULL) == 0)
		load_slot(d, name, r);
	record_free(r);
	return put_on_record(d, LIMIT_SLOTS + gpu, slot_of_gpu(d, gpu), e);
}

/* Takes over what was changed, once it is in the store. */
static int change(struct daemon *d, size_t i, const struct slot *to, struct err *e)
{
	TRY(put_on_record(d, i, to, e));
	d->slot[i] = *to;
	slots_judge(d);
	return 0;
}

int slot_drain(struct daemon *d, size_t i, const char *by, const char *reason, struct err *e)
{
	struct slot s = d->slot[i];

	s.drained = true;
	snprintf(s.reason, sizeof s.reason, "%s", *reason ? reason : "no reason was given");
	snprintf(s.by, sizeof s.by, "%s", by);
	s.since = clock_wall_ms();
	return change(d, i, &s, e);
}

int slot_resume(struct daemon *d, size_t i, struct err *e)
{
	struct slot s = d->slot[i];

	forget_drain(&s);
	if (s.report)
		s.ecc_accepted = s.report->gpu[0]->ecc_errors;
	return change(d, i, &s, e);
}

int slot_forget(struct daemon *d, size_t i, struct err *e)
{
	char room[GPU_NAME_MAX];

	FAIL_IF(!d->slot[i].missing, e, TF_ESTATE, "%s is there: it cannot be forgotten",
		slot_name(d, i, room));
	return slot_delete(d->state, slot_name(d, i, room), e);
}

/* ---------------------------------------------------------------- foreign processes */

/* Workers run in sessions of their own, so what they start is theirs. */
static bool is_ours(const struct daemon *d, pid_t pid)
{
	pid_t session = getsid(pid);

	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i]->pid == pid || d->worker[i]->pid == session)
			return true;
	return pid == getpid();
}

/* The driver numbers processes as the machine does, which in a container says nothing. */
static bool pids_are_known(const struct daemon *d)
{
	char text[64];
	ssize_t n;

	if (strcmp(d->options.gpu_foreign, "auto") != 0)
		return strcmp(d->options.gpu_foreign, "drain") == 0;
	n = readlink("/proc/self/ns/pid", text, sizeof text - 1);
	text[n > 0 ? n : 0] = 0;
	return strcmp(text, INITIAL_PID_NAMESPACE) == 0;
}

/* "process 4711 (python3, user ada) uses 12G of it" */
static void tell_process(const Tf__GpuProcess *p, char why[GPU_WHY_MAX])
{
	char path[64], command[32] = "?", size[24] = "some";
	struct passwd *owner = NULL;
	struct stat st;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%u/comm", p->pid);
	f = fopen(path, "re");
	if (f && fgets(command, sizeof command, f))
		command[strcspn(command, "\n")] = 0;
	if (f)
		fclose(f);
	snprintf(path, sizeof path, "/proc/%u", p->pid);
	if (stat(path, &st) == 0)
		owner = getpwuid(st.st_uid);
	if (p->has_memory)
		snprintf(size, sizeof size, "%.1f GiB", (double)p->memory / (1u << 30));
	snprintf(why, GPU_WHY_MAX, "process %u (%s, user %.30s), of no job, uses %s of it", p->pid,
		 command, owner ? owner->pw_name : "?", size);
}

static bool has_foreign(const struct daemon *d, const Tf__GpuState *m, char why[GPU_WHY_MAX])
{
	if (!pids_are_known(d))
		return false;
	for (size_t i = 0; i < m->n_process; i++) {
		pid_t pid = (pid_t)m->process[i]->pid;

		if (is_ours(d, pid) || process_start(pid) == 0)
			continue; /* or it has left since */
		tell_process(m->process[i], why);
		return true;
	}
	return false;
}

/* ---------------------------------------------------------------- judging */

/* Events last: they are put on record. False: it could not be done now; the next report tries. */
static bool drain_by_event(struct daemon *d, size_t gpu, const char *reason)
{
	struct err e = ERR_INIT;

	if (d->read_only || !d->state)
		return false;
	if (slot_of_gpu(d, gpu)->drained)
		return true;
	if (slot_drain(d, LIMIT_SLOTS + gpu, "", reason, &e) == 0)
		return true;
	log_error("a drain is not on record: %s", e.text);
	return false;
}

static const char *xid_text(uint32_t xid)
{
	static const struct {
		uint32_t xid;
		const char *text;
	} known[] = {
		{ 48, "a memory error that could not be corrected" },
		{ 62, "its controller halted" },
		{ 64, "a row of its memory could not be remapped" },
		{ 74, "an error of NVLink" },
		{ 79, "it has fallen off the bus" },
		{ 95, "a memory error that could not be contained" },
		{ 119, "its system processor does not answer" },
		{ 120, "an error of its system processor" },
	};

	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (known[i].xid == xid)
			return known[i].text;
	return "see NVIDIA's list of XID errors";
}

void slot_report(struct daemon *d, size_t gpu, Tf__GpuReport *report)
{
	struct slot *s = slot_of_gpu(d, gpu);
	const Tf__GpuState *m = report->gpu[0];
	char why[GPU_WHY_MAX];

	if (s->report)
		tf__gpu_report__free_unpacked(s->report, NULL);
	s->report = report;
	s->seen_ms = clock_mono_ms();
	s->missing = false;
	if (m->has_ecc_errors && m->ecc_errors < s->ecc_accepted)
		s->ecc_accepted = m->ecc_errors; /* the driver counts anew */
	if (m->xids > s->xids_seen) {
		snprintf(why, sizeof why, "critical error XID %u: %s", m->xid, xid_text(m->xid));
		if (drain_by_event(d, gpu, why))
			s->xids_seen = m->xids;
	}
	if (m->has_ecc_errors && m->ecc_errors > s->ecc_accepted) {
		snprintf(why, sizeof why, "%llu memory errors (ECC) that could not be corrected",
			 (unsigned long long)(m->ecc_errors - s->ecc_accepted));
		drain_by_event(d, gpu, why);
	}
}

/* Whether the GPU is drained, and why. */
static bool judge_gpu(struct daemon *d, size_t gpu, char why[GPU_WHY_MAX])
{
	const struct slot *s = slot_of_gpu(d, gpu);
	const Tf__GpuState *m = s->report ? s->report->gpu[0] : NULL;
	int64_t silent_ms = clock_mono_ms() - s->seen_ms;

	why[0] = 0;
	if (s->drained)
		snprintf(why, GPU_WHY_MAX, "%s", s->reason);
	else if (!s->watched)
		return false;
	else if (s->missing && !d->gpu_watch.listed && !*d->gpu_watch.fault)
		snprintf(why, GPU_WHY_MAX, NOT_LOOKED_AT);
	else if (s->missing)
		snprintf(why, GPU_WHY_MAX, "the driver does not list it%s%.80s",
			 *d->gpu_watch.fault ? ": " : "", d->gpu_watch.fault);
	else if (silent_ms > d->options.gpu_timeout_ms)
		snprintf(why, GPU_WHY_MAX, "the driver has not answered about it for %lld s",
			 (long long)silent_ms / 1000);
	else if (!m)
		snprintf(why, GPU_WHY_MAX, NOT_LOOKED_AT);
	else if (m->fault)
		snprintf(why, GPU_WHY_MAX, "the driver says: %.100s", m->fault);
	else if (m->mig)
		snprintf(why, GPU_WHY_MAX, "it is divided (MIG), which is not supported");
	else
		return has_foreign(d, m, why);
	return true;
}

/* It is drained, and not only until it was looked at. */
static bool is_known(const struct gpu *g)
{
	return g->drained && strcmp(g->why, NOT_LOOKED_AT) != 0;
}

static void tell_drain(struct daemon *d, size_t gpu)
{
	const struct gpu *g = &d->machine.gpu[gpu];

	log_info("%s is drained: %s", g->name, g->why);
	notice_slot_drained(d, g->name, g->why, slot_of_gpu(d, gpu)->by);
}

void slots_judge(struct daemon *d)
{
	uint64_t drained = 0;

	for (uint32_t i = 0; i < d->machine.slots; i++)
		if (d->slot[i].drained)
			drained |= 1ull << i;
	for (uint64_t fresh = drained & ~d->machine.drained; fresh; fresh &= fresh - 1) {
		size_t i = (size_t)__builtin_ctzll(fresh);
		char name[GPU_NAME_MAX];

		notice_slot_drained(d, slot_name(d, i, name), d->slot[i].reason, d->slot[i].by);
	}
	if (drained != d->machine.drained) {
		d->schedule_due = true;
		log_info("slots of the processor drained: %#llx", (unsigned long long)drained);
	}
	d->machine.drained = drained;
	for (size_t i = 0; i < d->machine.gpus; i++) {
		struct gpu *g = &d->machine.gpu[i];
		char why[GPU_WHY_MAX];
		bool known = is_known(g), now = judge_gpu(d, i, why), before = g->drained;

		d->schedule_due |= now != before;
		g->drained = now;
		memcpy(g->why, why, sizeof why);
		if (is_known(g) && !known)
			tell_drain(d, i);
		else if (before && !now)
			log_info("%s takes jobs", g->name);
	}
}

void slots_announce(struct daemon *d)
{
	for (size_t i = 0; i < d->machine.gpus; i++)
		if (is_known(&d->machine.gpu[i]) && !slot_of_gpu(d, i)->drained)
			notice_slot_drained(d, d->machine.gpu[i].name, d->machine.gpu[i].why, "");
}

void slots_release(struct daemon *d)
{
	for (size_t i = 0; i < SLOTS_MAX; i++)
		if (d->slot[i].report)
			tf__gpu_report__free_unpacked(d->slot[i].report, NULL);
}
