/* SPDX-License-Identifier: Apache-2.0
 * Files and datasets between clients and the state folder. */
#ifndef DAEMON_FILES_H
#define DAEMON_FILES_H

#include "daemon/daemon.h"

/* ---- folder.c: files for clients, no link followed ---- */
/* Opens a regular file below root by a plain relative path. */
int folder_open_file(const char *root, const char *rel, int *fd, uint64_t *size, struct err *e);
typedef bool (*folder_filter)(const char *rel);
/* All regular files below root that the filter (NULL: any) takes; at most LIMIT_FILES_LISTED. */
int folder_list(const char *root, folder_filter filter, Tf__Files *out, struct err *e);
void folder_list_release(Tf__Files *files);

/* ---- upload.c ---- */
int upload_start(struct daemon *d, const struct request *r, const Tf__UploadOpen *m,
		 Tf__UploadState *out, struct err *e);
int upload_write(struct daemon *d, const struct request *r, const Tf__UploadChunk *m,
		 Tf__UploadState *out, struct err *e);
int upload_finish(struct daemon *d, struct request *r, const Tf__UploadClose *m, struct err *e);
/* The path of a finished upload of the user; the caller frees it. */
int upload_path(struct daemon *d, const char *id, const char *user, char **path, struct err *e);
void upload_collect(struct daemon *d); /* old ones nobody uses */
void upload_release_all(struct daemon *d);
/* But for those that are being closed: each is taken up again when its record is there, which a
 * commit that failed may have kept from being. */
void upload_release_open(struct daemon *d);

/* ---- reader.c: data_sample and data_verify in a process of their own ---- */
int reader_start(struct daemon *d, const struct request *r, char *const *argv, struct err *e);
void reader_exited(struct daemon *d, struct reader_process *p);
void reader_tick(struct daemon *d);
/* What that process does: `transfused --read-dataset sample FOLDER COUNT SEED | verify FOLDER`. */
int reader_main(int argc, char **argv);

#endif
