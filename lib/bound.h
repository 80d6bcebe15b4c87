/* SPDX-License-Identifier: Apache-2.0
 * Bounds that are far away, for tests: TF_BOUND=name:n[,name:n]... lowers a bound to n, so that a
 * test reaches it within seconds, on the very path that the real one takes. It only lowers: what is
 * above the real value does not count. Without the variable a look costs one comparison. A bound
 * that a test reaches at its real size is not asked for here. The names:
 *
 *   jobs-queued          LIMIT_JOBS_QUEUED          a million jobs
 *   unsent-bytes         LIMIT_UNSENT_BYTES         256 MiB of answers nobody takes
 *   audit-pending-bytes  LIMIT_AUDIT_PENDING_BYTES  4 MiB of lines while the disk takes none
 *   audit-scan-bytes     LIMIT_AUDIT_SCAN_BYTES     256 MiB of lines read for one answer
 *   workers              LIMIT_WORKERS              256 attempts with a process
 *   gc-listed            LIMIT_GC_LISTED            1000 old files, 8 of them in reserve
 *   import-files         LIMIT_IMPORT_FILES         16 M files in one folder or tar
 *   shards               LIMIT_SHARDS               65,536 files of a dataset
 *   corpus-bytes         LIMIT_CORPUS_BYTES         1 GiB of text in memory
 *   heartbeat-ms         HEARTBEAT_MS               5 s between signs of life of a connection */
#ifndef LIB_BOUND_H
#define LIB_BOUND_H

#include <stdint.h>

/* The value, or what it is lowered to. Any thread may call it. */
uint64_t bound(const char *name, uint64_t value);

#endif
