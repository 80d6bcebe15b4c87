/* SPDX-License-Identifier: Apache-2.0
 * The catalogue: artefacts (datasets, tokenizers, autoencoders, models) by id and by name, who uses
 * them, and the uploads that wait to be used. An artefact's id never changes and names its folder.
 */
#ifndef STORE_CATALOGUE_H
#define STORE_CATALOGUE_H

#include "proto/spec.h"
#include "store/record.h"
#include "store/store.pb-c.h"

/* Artefact.state */
#define ARTEFACT_MAKING "making" /* its job has not ended */
#define ARTEFACT_READY "ready"
#define ARTEFACT_STOPPED "stopped" /* its job ended early and left checkpoints */

const char *artefact_kind_folder(Tf__ArtefactKind kind); /* "data" ... below the state folder */

/* Puts the record and leads its name to it. */
int artefact_put(struct state *s, Tf__Artefact *artefact, struct err *e);
/* TF_ENOTFOUND without a sentence; the caller frees *out with record_free. */
int artefact_get(struct state *s, const char *id, Tf__ArtefactRecord **out, struct err *e);
/* By kind and bare name; TF_ENOTFOUND "no dataset called N". */
int artefact_find(struct state *s, Tf__ArtefactKind kind, const char *name,
		  Tf__ArtefactRecord **out, struct err *e);
/* Removes the record, its name and its uses of others. */
int artefact_remove(struct state *s, const Tf__Artefact *artefact, struct err *e);
typedef int (*artefact_fn)(void *arg, const Tf__Artefact *artefact);
/* Each artefact of a kind (0: all) by id. fn as in state_each. */
int artefacts_each(struct state *s, int kind, artefact_fn fn, void *arg, struct err *e);
/* Of all kinds, from an id on ("": the first). */
int artefacts_each_from(struct state *s, const char *id, artefact_fn fn, void *arg, struct err *e);

/* Who uses an artefact or upload: 'j' and a job's number, or 'a' and an artefact's id. */
int use_put(struct state *s, const char *id, char who, const char *name, struct err *e);
int use_delete(struct state *s, const char *id, char who, const char *name, struct err *e);
/* Any use of id: who and name (caller frees *name); TF_ENOTFOUND without a sentence. */
int use_find(struct state *s, const char *id, char *who, char **name, struct err *e);

int upload_put(struct state *s, const uint8_t token[16], Tf__UploadRecord *record, struct err *e);
/* TF_ENOTFOUND without a sentence; the caller frees *out with record_free. */
int upload_get(struct state *s, const uint8_t token[16], Tf__UploadRecord **out, struct err *e);
int upload_delete(struct state *s, const uint8_t token[16], struct err *e);
typedef int (*upload_fn)(void *arg, const uint8_t token[16], const Tf__UploadRecord *record);
int uploads_each(struct state *s, upload_fn fn, void *arg, struct err *e);
/* An upload's id is its token in hex: both directions. False when the text is no such id. */
void upload_id(const uint8_t token[16], char out[33]);
bool upload_token(const char *id, uint8_t token[16]);

#endif
