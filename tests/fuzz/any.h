/* SPDX-License-Identifier: Apache-2.0
 * Messages by chance, of any type: made and changed by walking the descriptors of protobuf-c, so
 * they unpack, and speak of what there may be (a table of words by the fields' names). */
#ifndef TESTS_FUZZ_ANY_H
#define TESTS_FUZZ_ANY_H

#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A public key of so many of one character, and an upload's id of one byte (two digits). */
#define ANY_TEN(c) c c c c c c c c c c
#define ANY_KEY(c) ANY_TEN(c) ANY_TEN(c) ANY_TEN(c) ANY_TEN(c)
#define ANY_ID(c) ANY_TEN(c) c c c c c c

/* Chance is a number that goes on with each choice. */
uint64_t any_number(uint64_t *chance, uint64_t below);
/* A message of the type; the caller's (protobuf_c_message_free_unpacked). */
ProtobufCMessage *any_message(uint64_t *chance, const ProtobufCMessageDescriptor *type);
/* Changes a field of m or of a message in it. */
void any_change(uint64_t *chance, ProtobufCMessage *m);

/* Calls fn for each value there is in m, in depth; at: of the value. */
typedef void (*any_fn)(void *arg, const ProtobufCFieldDescriptor *field, void *at);
void any_walk(ProtobufCMessage *m, any_fn fn, void *arg);

#endif
