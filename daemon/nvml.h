/* SPDX-License-Identifier: Apache-2.0
 * The GPUs as NVIDIA's management library tells of them. The library is opened at run time by its
 * name, and declared here as far as it is used: the program neither needs it nor its headers. Any
 * call may hang in the driver, so all of this runs in a process of its own (gpu_probe.c). */
#ifndef DAEMON_NVML_H
#define DAEMON_NVML_H

#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

#define NVML_LIBRARY "libnvidia-ml.so.1"
#define GPU_PROCESSES_MAX 64 /* told of a GPU; more are left out */

/* What is known of a GPU at a moment. message points into the rest. */
struct gpu_sample {
	Tf__GpuState message;
	char uuid[96], model[96], fault[200];
	Tf__GpuProcess process[GPU_PROCESSES_MAX], *processes[GPU_PROCESSES_MAX];
};

struct nvml;

/* TF_EUNSUPPORTED when there is no such library or no driver; the sentence says which. */
int nvml_open(const char *library, struct nvml **out, struct err *e);
void nvml_close(struct nvml *n);
const char *nvml_driver(const struct nvml *n); /* its version */
uint32_t nvml_count(const struct nvml *n);
/* UUID, model and memory alone. What fails is named in message.fault. */
void nvml_identify(struct nvml *n, uint32_t gpu, struct gpu_sample *out);
/* The same with everything that changes. Figures the GPU does not have are left out. */
void nvml_look(struct nvml *n, uint32_t gpu, struct gpu_sample *out);
/* Waits for a critical error of a GPU (an XID) that is no fault of the program that ran there.
 * False: none came in that time. TF_EUNSUPPORTED by nvml_watch_xids: the GPUs do not tell. */
int nvml_watch_xids(struct nvml *n, struct err *e);
bool nvml_next_xid(struct nvml *n, unsigned timeout_ms, uint32_t *gpu, uint32_t *xid);

#endif
