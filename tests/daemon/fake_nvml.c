/* SPDX-License-Identifier: Apache-2.0
 * A library that speaks like NVML about GPUs that are lines of a file: "gpus" in the folder through
 * which it was opened, read again at every call. A line: UUID key=value..., the keys memory and
 * used (MiB), load, power (W), temp, procs (PID:MIB,...), ecc, xid (a new number: a critical
 * error), error (what every call returns), mig, hang (calls wait while it is not 0). A line
 * "init=N" makes nvmlInit fail. A GPU whose line is gone is lost. */
#include "config.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPUS 8
#define LINE 400
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, NO_DRIVER = 9, TIMEOUT = 10, LOST = 15 };

static char uuids[GPUS][64];
static unsigned count;

/* The UUID's line; with uuid NULL the line that begins with "init=". */
static bool line_of(const char *uuid, char line[LINE])
{
	const char *wanted = uuid ? uuid : "init=";
	char path[1000], *slash;
	bool found = false;
	Dl_info self;
	FILE *f;

	dladdr((void *)line_of, &self);
	snprintf(path, sizeof path, "%s", self.dli_fname);
	slash = strrchr(path, '/');
	snprintf(slash ? slash + 1 : path, 8, "gpus");
	f = fopen(path, "re");
	while (f && !found && fgets(line, LINE, f))
		found = strncmp(line, wanted, strlen(wanted)) == 0;
	if (f)
		fclose(f);
	if (!found)
		line[0] = 0;
	return found;
}

static long long value_of(const char *line, const char *key, long long missing)
{
	size_t len = strlen(key);

	for (const char *p = line; (p = strstr(p, key)) != NULL; p += len)
		if ((p == line || p[-1] == ' ') && p[len] == '=')
			return atoll(p + len + 1);
	return missing;
}

/* The GPU's line once it does not hang; what the call returns otherwise. */
static int look(void *device, char line[LINE])
{
	while (line_of(device, line) && value_of(line, "hang", 0))
		usleep(10000);
	return *line ? (int)value_of(line, "error", OK) : LOST;
}

static int number(void *device, const char *key, unsigned scale, unsigned *out)
{
	char line[LINE];
	long long value;
	int rc = look(device, line);

	if (rc)
		return rc;
	value = value_of(line, key, -1);
	*out = value < 0 ? 0 : (unsigned)value * scale;
	return value < 0 ? NOT_SUPPORTED : OK;
}

int nvmlInit_v2(void);
int nvmlInit_v2(void)
{
	char path[1000], line[LINE], *slash;
	Dl_info self;
	FILE *f;

	if (line_of(NULL, line))
		return (int)value_of(line, "init", NO_DRIVER);
	dladdr((void *)line_of, &self);
	snprintf(path, sizeof path, "%s", self.dli_fname);
	slash = strrchr(path, '/');
	snprintf(slash ? slash + 1 : path, 8, "gpus");
	f = fopen(path, "re");
	if (!f)
		return NO_DRIVER;
	while (count < GPUS && fgets(line, LINE, f))
		if (sscanf(line, "%63s", uuids[count]) == 1)
			count++;
	fclose(f);
	return OK;
}

int nvmlShutdown(void);
int nvmlShutdown(void)
{
	return OK;
}

const char *nvmlErrorString(int rc);
const char *nvmlErrorString(int rc)
{
	return rc == LOST ? "GPU is lost" : rc == NO_DRIVER ? "Driver Not Loaded" : "Unknown Error";
}

int nvmlSystemGetDriverVersion(char *out, unsigned room);
int nvmlSystemGetDriverVersion(char *out, unsigned room)
{
	snprintf(out, room, "1.2.3-fake");
	return OK;
}

int nvmlDeviceGetCount_v2(unsigned *out);
int nvmlDeviceGetCount_v2(unsigned *out)
{
	*out = count;
	return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out);
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out)
{
	*out = uuids[i];
	return i < count ? OK : NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned room);
int nvmlDeviceGetUUID(void *device, char *out, unsigned room)
{
	snprintf(out, room, "%s", (char *)device);
	return OK;
}

int nvmlDeviceGetName(void *device, char *out, unsigned room);
int nvmlDeviceGetName(void *device, char *out, unsigned room)
{
	(void)device;
	snprintf(out, room, "Fake H100");
	return OK;
}

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long out[3]);
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long out[3])
{
	char line[LINE];
	int rc = look(device, line);

	if (rc)
		return rc;
	out[0] = (unsigned long long)value_of(line, "memory", 0) << 20;
	out[2] = (unsigned long long)value_of(line, "used", 0) << 20;
	out[1] = out[0] - out[2];
	return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned out[2]);
int nvmlDeviceGetUtilizationRates(void *device, unsigned out[2])
{
	out[1] = 0;
	return number(device, "load", 1, &out[0]);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *out);
int nvmlDeviceGetPowerUsage(void *device, unsigned *out)
{
	return number(device, "power", 1000, out);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out);
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out)
{
	return sensor ? NOT_SUPPORTED : number(device, "temp", 1, out);
}

int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later);
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later)
{
	*later = 0;
	return number(device, "mig", 1, now);
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *out);
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *out)
{
	unsigned errors = 0;
	int rc = number(device, "ecc", 1, &errors);

	*out = errors;
	return type == 1 && counter == 0 ? rc : NOT_SUPPORTED;
}

struct process {
	unsigned pid;
	unsigned long long memory;
	unsigned instance[2];
};

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n, struct process *out);
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n, struct process *out)
{
	char line[LINE], *p;
	unsigned room = *n;
	int rc = look(device, line);

	*n = 0;
	p = rc ? NULL : strstr(line, " procs=");
	for (p = p ? p + 7 : NULL; p && *n < room; p = *p == ',' ? p + 1 : NULL) {
		unsigned long mib;

		out[*n] = (struct process){ .pid = (unsigned)strtoul(p, &p, 10) };
		mib = *p == ':' ? strtoul(p + 1, &p, 10) : 0;
		out[(*n)++].memory = (unsigned long long)mib << 20;
	}
	return rc;
}

int nvmlEventSetCreate(void **out);
int nvmlEventSetCreate(void **out)
{
	*out = uuids;
	return OK;
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set);
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set)
{
	return device && set && types == 8 ? OK : NOT_SUPPORTED;
}

struct event {
	void *device;
	unsigned long long type, data;
	unsigned instance[2];
};

int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout_ms);
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout_ms)
{
	static long long told[GPUS];
	char line[LINE];

	(void)set;
	for (unsigned waited = 0; waited < timeout_ms; waited += 20) {
		for (unsigned i = 0; i < count; i++) {
			long long xid = line_of(uuids[i], line) ? value_of(line, "xid", 0) : 0;

			if (xid == told[i])
				continue;
			told[i] = xid;
			if (xid == 0)
				continue;
			*out = (struct event){ uuids[i], 8, (unsigned long long)xid, { 0, 0 } };
			return OK;
		}
		usleep(20000);
	}
	return TIMEOUT;
}
