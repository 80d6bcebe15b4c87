/* SPDX-License-Identifier: Apache-2.0
 * Job specs as JSON: the fields of message JobSpec by their names, read by the message's own
 * description, so that a new field needs nothing here. */
#ifndef CLIENT_SPEC_JSON_H
#define CLIENT_SPEC_JSON_H

#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stddef.h>

/* Reads one object and checks the spec (spec_check). The kind is that of the spec's member when it
 * is not given. *out is freed with tf__job_spec__free_unpacked. TF_EINVALID names the field. */
int spec_json_read(const char *text, size_t len, Tf__JobSpec **out, struct err *e);

#endif
