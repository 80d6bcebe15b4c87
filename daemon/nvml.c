/* SPDX-License-Identifier: Apache-2.0
 * NVML by dlopen; see nvml.h. Structures and numbers are those of NVIDIA's nvml.h, which promises
 * to keep them for the versions of the functions named in nvml.def. */
#include "config.h"
#include "daemon/nvml.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* nvmlReturn_t */
enum {
	NVML_OK = 0,
	NVML_NOT_SUPPORTED = 3,
	NVML_NO_PERMISSION = 4,
	NVML_INSUFFICIENT_SIZE = 7,
	NVML_FUNCTION_NOT_FOUND = 13,
};
#define NVML_TEMPERATURE_GPU 0
#define NVML_ERROR_UNCORRECTED 1
#define NVML_ECC_SINCE_LOADED 0
#define NVML_EVENT_XID 8ull

struct nvml_memory {
	unsigned long long total, unused, used;
};
struct nvml_load {
	unsigned gpu, memory; /* percent */
};
struct nvml_process {
	unsigned pid;
	unsigned long long memory;
	unsigned gpu_instance, compute_instance;
};
struct nvml_event {
	void *device;
	unsigned long long type, data;
	unsigned gpu_instance, compute_instance;
};

struct nvml {
	void *library;
#define F(member, symbol, needed, ...) int (*member)(__VA_ARGS__);
#include "daemon/nvml.def"
#undef F
	const char *(*error_text)(int);
	char driver_version[96];
	uint32_t gpus;
	void *handle[LIMIT_GPUS];
	void *events;
};

static const char *text_of(const struct nvml *n, int rc)
{
	static _Thread_local char number[32];

	if (n->error_text)
		return n->error_text(rc);
	snprintf(number, sizeof number, "NVML error %d", rc);
	return number;
}

static int load(struct nvml *n, const char *library, struct err *e)
{
	static const struct {
		const char *symbol;
		size_t offset;
		bool needed;
	} function[] = {
#define F(member, symbol, needed, ...) { #symbol, offsetof(struct nvml, member), needed },
#include "daemon/nvml.def"
#undef F
	};

	n->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	FAIL_IF(!n->library, e, TF_EUNSUPPORTED, "there is no driver of NVIDIA here: %s",
		dlerror());
	for (size_t i = 0; i < ARRAY_LEN(function); i++) {
		void *address = dlsym(n->library, function[i].symbol);

		FAIL_IF(!address && function[i].needed, e, TF_EUNSUPPORTED, "%s has no %s", library,
			function[i].symbol);
		memcpy((char *)n + function[i].offset, &address, sizeof address);
	}
	*(void **)&n->error_text = dlsym(n->library, "nvmlErrorString");
	return 0;
}

static int open_gpus(struct nvml *n, struct err *e)
{
	unsigned count = 0;
	int rc = n->count(&count);

	FAIL_IF(rc, e, TF_EUNSUPPORTED, "the GPUs cannot be counted: %s", text_of(n, rc));
	n->gpus = count < LIMIT_GPUS ? count : LIMIT_GPUS;
	for (uint32_t i = 0; i < n->gpus; i++)
		if (n->by_index(i, &n->handle[i]))
			n->handle[i] = NULL; /* each look says so */
	return 0;
}

int nvml_open(const char *library, struct nvml **out, struct err *e)
{
	struct nvml *n = xcalloc(1, sizeof *n);
	int rc = load(n, library, e), status = 0;

	if (rc == 0)
		status = n->init();
	if (status)
		rc = err_set(e, TF_EUNSUPPORTED, "the driver of NVIDIA does not start: %s",
			     text_of(n, status));
	if (rc == 0)
		rc = open_gpus(n, e);
	if (rc == 0 && (!n->driver || n->driver(n->driver_version, sizeof n->driver_version)))
		snprintf(n->driver_version, sizeof n->driver_version, "unknown");
	if (rc < 0) {
		/* a library that did not start is not unloaded: its threads may still run */
		xfree(n);
		return rc;
	}
	*out = n;
	return 0;
}

void nvml_close(struct nvml *n)
{
	if (n)
		n->shutdown();
	xfree(n);
}

const char *nvml_driver(const struct nvml *n)
{
	return n->driver_version;
}

uint32_t nvml_count(const struct nvml *n)
{
	return n->gpus;
}

/* Whether the call succeeded. A figure the GPU or the driver does not have is no fault. */
static bool good(struct nvml *n, struct gpu_sample *s, const char *what, int rc)
{
	if (rc == NVML_OK)
		return true;
	if (rc != NVML_NOT_SUPPORTED && rc != NVML_NO_PERMISSION && rc != NVML_FUNCTION_NOT_FOUND &&
	    !s->message.fault) {
		snprintf(s->fault, sizeof s->fault, "%s: %s", what, text_of(n, rc));
		s->message.fault = s->fault;
	}
	return false;
}

#define CALL(n, s, member, ...)                                                                    \
	((n)->member && good(n, s, #member, (n)->member(handle, __VA_ARGS__)))

void nvml_identify(struct nvml *n, uint32_t gpu, struct gpu_sample *s)
{
	void *handle = n->handle[gpu];
	struct nvml_memory memory;

	CHECK(gpu < n->gpus);
	memset(s, 0, sizeof *s);
	tf__gpu_state__init(&s->message);
	s->message.number = gpu;
	s->message.uuid = s->uuid;
	if (!handle) {
		snprintf(s->fault, sizeof s->fault, "the driver gives no access to it");
		s->message.fault = s->fault;
		return;
	}
	if (!CALL(n, s, uuid, s->uuid, sizeof s->uuid))
		s->uuid[0] = 0;
	if (CALL(n, s, model, s->model, sizeof s->model))
		s->message.model = s->model;
	if (CALL(n, s, memory, &memory)) {
		s->message.has_memory = s->message.has_memory_used = true;
		s->message.memory = memory.total;
		s->message.memory_used = memory.used;
	}
}

static void look_at_processes(struct nvml *n, void *handle, struct gpu_sample *s)
{
	struct nvml_process process[GPU_PROCESSES_MAX];
	unsigned count = GPU_PROCESSES_MAX;
	int rc = n->processes ? n->processes(handle, &count, process) : NVML_NOT_SUPPORTED;

	if (rc == NVML_INSUFFICIENT_SIZE)
		count = GPU_PROCESSES_MAX; /* the first ones are there */
	else if (!good(n, s, "processes", rc))
		return;
	for (unsigned i = 0; i < count && i < GPU_PROCESSES_MAX; i++) {
		tf__gpu_process__init(&s->process[i]);
		s->process[i].pid = process[i].pid;
		s->process[i].has_memory = process[i].memory != UINT64_MAX;
		s->process[i].memory = process[i].memory;
		s->processes[s->message.n_process++] = &s->process[i];
	}
	s->message.process = s->processes;
}

void nvml_look(struct nvml *n, uint32_t gpu, struct gpu_sample *s)
{
	Tf__GpuState *m = &s->message;
	unsigned power, limit, temperature, mig, pending;
	unsigned long long errors;
	struct nvml_load busy;
	void *handle;

	nvml_identify(n, gpu, s);
	handle = n->handle[gpu];
	if (!handle)
		return;
	m->has_load = CALL(n, s, load, &busy);
	m->load = m->has_load ? busy.gpu : 0;
	m->has_power_w = CALL(n, s, power, &power);
	m->power_w = m->has_power_w ? power / 1000.0 : 0;
	m->has_power_limit_w = CALL(n, s, power_limit, &limit);
	m->power_limit_w = m->has_power_limit_w ? limit / 1000.0 : 0;
	m->has_temperature = CALL(n, s, temperature, NVML_TEMPERATURE_GPU, &temperature);
	m->temperature = m->has_temperature ? temperature : 0;
	m->has_ecc_errors =
		CALL(n, s, ecc_errors, NVML_ERROR_UNCORRECTED, NVML_ECC_SINCE_LOADED, &errors);
	m->ecc_errors = m->has_ecc_errors ? errors : 0;
	m->has_mig = CALL(n, s, mig, &mig, &pending);
	m->mig = m->has_mig && mig == 1;
	look_at_processes(n, handle, s);
}

/* ---------------------------------------------------------------- critical errors */

int nvml_watch_xids(struct nvml *n, struct err *e)
{
	bool any = false;
	int rc;

	FAIL_IF(!n->events_new || !n->events_register || !n->events_wait, e, TF_EUNSUPPORTED,
		"the driver has no events");
	rc = n->events_new(&n->events);
	FAIL_IF(rc, e, TF_EUNSUPPORTED, "no set of events: %s", text_of(n, rc));
	for (uint32_t i = 0; i < n->gpus; i++)
		any |= n->handle[i] &&
		       n->events_register(n->handle[i], NVML_EVENT_XID, n->events) == NVML_OK;
	FAIL_IF(!any, e, TF_EUNSUPPORTED, "no GPU tells of critical errors");
	return 0;
}

/* Those that a program causes by itself: the GPU is as good as before. */
static bool of_program(unsigned long long xid)
{
	static const unsigned mild[] = { 13, 31, 43, 45, 68, 109 };

	for (size_t i = 0; i < ARRAY_LEN(mild); i++)
		if (xid == mild[i])
			return true;
	return false;
}

bool nvml_next_xid(struct nvml *n, unsigned timeout_ms, uint32_t *gpu, uint32_t *xid)
{
	struct nvml_event event = { 0 };

	if (n->events_wait(n->events, &event, timeout_ms) != NVML_OK) {
		clock_sleep_ms(100); /* not a busy loop, should it fail at once */
		return false;
	}
	if (event.type != NVML_EVENT_XID || of_program(event.data))
		return false;
	for (*gpu = 0; *gpu < n->gpus && n->handle[*gpu] != event.device;)
		++*gpu;
	*xid = (uint32_t)event.data;
	return *gpu < n->gpus;
}
