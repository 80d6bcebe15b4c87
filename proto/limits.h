/* SPDX-License-Identifier: Apache-2.0
 * Every bound of the wire, the queue and the store, by name. What exceeds one is answered with
 * TF_ELIMIT naming it; only LIMIT_FRAME_BYTES closes the connection. doc/limits.md names
 * the test that reaches each; lib/bound.h lowers those that are too far away for one. */
#ifndef PROTO_LIMITS_H
#define PROTO_LIMITS_H

#define TF_PROTOCOL_VERSION 1u
#define TF_STORE_VERSION 3u

#define LIMIT_MESSAGE_BYTES (4u << 20)        /* one message, both ways */
#define LIMIT_FRAME_BYTES (5u << 20)          /* what is longer closes the connection unread */
#define LIMIT_UNPACK_FACTOR 8u                /* unpacked size: at most so many times the message */
#define LIMIT_UNPACK_REPLY_FACTOR 64u         /* a queued job: 12 bytes packed, 450 unpacked */
#define LIMIT_NAME_BYTES 100u                 /* names of jobs, artefacts, users */
#define LIMIT_PATH_BYTES 1024u
#define LIMIT_TEXT_BYTES (64u << 10)          /* a prompt, a reason */
#define LIMIT_EXPERIMENT_BYTES (256u << 10)
/* Of a job: the message that tells its worker of it has the paths of inputs and folders, too, and
 * the one that tells a client the job's record. */
#define LIMIT_SPEC_BYTES (LIMIT_MESSAGE_BYTES - (256u << 10))
#define LIMIT_PROMPTS 4096u                   /* per generate job */
#define LIMIT_IMAGES_PER_PROMPT 1024u
#define LIMIT_KEPT_SEQUENCES 8                /* of a sampler that a warm worker keeps */
#define LIMIT_HELDOUT_NAMES 20000u
#define LIMIT_SOURCES 4096u                   /* paths or uploads of an import */
#define LIMIT_JOB_REFS 10000u                 /* jobs named in one request */
#define LIMIT_BATCH_JOBS 1000u                /* jobs of one submit_batch */
#define LIMIT_BATCH_BYTES (64u << 20)         /* a file of jobs that a client submits */
#define LIMIT_AFTER 256u                      /* dependencies of a job, of each kind */
#define LIMIT_TAGS 16u                        /* of a job */
#define LIMIT_GROUPS 1000u                    /* a user's, of jobs that have not ended */
#define LIMIT_JOBS_QUEUED 1000000u
#define LIMIT_JOURNAL_BYTES (1u << 20)        /* commits of the store before they are folded */
#define LIMIT_UNFOLDED_JOBS 512u              /* new ones in them */
#define LIMIT_UNFOLDED_TOKENS 64u             /* theirs that lie apart: pages in memory */
#define LIMIT_JOBS_LISTED 10000u              /* in one reply */
#define LIMIT_OVERVIEW_JOBS 100u              /* in one overview */
#define LIMIT_JOBS_PASSED 4096u               /* passed over for one reply, not being asked for */
#define LIMIT_FILTERS 64u                     /* states, users or kinds of one list */
#define LIMIT_USERS 10000u                    /* keys of people, all together */
#define LIMIT_AUDIT_FILES 8                   /* of the audit log, together of option audit_mib */
#define LIMIT_AUDIT_REFUSALS 100u             /* lines a second; the rest are counted in one */
#define LIMIT_AUDIT_PENDING_BYTES (4u << 20)  /* lines that wait to be written */
#define LIMIT_AUDIT_LISTED 10000u             /* in one reply */
#define LIMIT_AUDIT_SCAN_BYTES (256u << 20)   /* looked at for one reply */
#define LIMIT_LOG_FILES 4                     /* of the daemon's log, together of daemon_log_mib */
#define LIMIT_NOTICES 1000u                   /* that wait to be delivered */
#define LIMIT_NOTICE_RULES 64u                /* entries of option notify_on */
#define LIMIT_USER_PENDING 4096u              /* requests of a user that are not handled yet */
#define LIMIT_PEER_UNSENT_BYTES (8u << 20)    /* answers one connection does not take */
#define LIMIT_UNSENT_BYTES (256u << 20)       /* all connections together */
#define LIMIT_USER_WAITS 1024u                /* of one key */
#define LIMIT_WAITS 4096u                     /* open long polls */
#define LIMIT_WAIT_ANY 250u                   /* jobs of which the first is waited for */
#define LIMIT_WAIT_MS 30000u
#define LIMIT_FILES_LISTED 10000u             /* of one job or artefact */
#define LIMIT_CHUNK_BYTES (1u << 20)          /* file and upload chunks */
#define LIMIT_UPLOAD_CREDIT 4u
#define LIMIT_USER_UPLOADS 64u                /* of one user */
#define LIMIT_UPLOADS 256u                    /* open at once */
#define LIMIT_UPLOAD_BYTES (1ull << 42)
#define LIMIT_ARTEFACTS 100000u
#define LIMIT_ARTEFACT_BYTES (2u << 20)       /* on record of one: facts, what it was made from */
#define LIMIT_ARTEFACTS_LOOKED 4096u           /* at, for one reply */
#define LIMIT_USAGE_LISTED 10000u             /* sums of usage in one reply */
#define LIMIT_GC_LISTED 1000u                 /* things to let go in one reply */
#define LIMIT_RETRIES 10u
#define LIMIT_RETRY_DELAY_S 86400u            /* between two attempts */
#define LIMIT_SLOTS 64u                       /* of the processor */
#define LIMIT_FAST_SLOTS 8u                   /* of the fast lane */
#define LIMIT_GPUS 64u
#define LIMIT_WORKERS 256u                    /* jobs running at a time */
#define LIMIT_JOINED 64u                      /* jobs of one worker at a time */
#define LIMIT_CPUS 65536u                     /* of a host */
#define LIMIT_METRICS 64u                     /* in one progress report */
#define LIMIT_METRICS_BYTES (256u << 20)      /* of a metrics.jsonl: later rows are left out */
#define LIMIT_IMPORT_FILES (16u << 20)        /* in one folder or tar */
#define LIMIT_SAMPLE_TEXT_BYTES (16u << 20)     /* a document or caption of a dataset */
#define LIMIT_SAMPLE_NAME_BYTES 1000u         /* name of a sample */
#define LIMIT_IMAGE_BYTES (64u << 20)         /* an encoded picture */
#define LIMIT_IMAGE_PIXELS (100u << 20)       /* a decoded one, checked before decoding */
#define LIMIT_IMAGE_SIDE 32768u
#define LIMIT_INGEST_SIDE 4096u               /* of the pictures of a dataset */
#define LIMIT_LINE_BYTES (64u << 20)          /* a line of a TSV, JSONL or text file */
#define LIMIT_BAD_LISTED 10000u               /* bad samples listed by name; all are counted */
#define LIMIT_SHARDS 65536u                   /* of a dataset */
#define LIMIT_MANIFEST_BYTES (64u << 20)
#define LIMIT_TOKENIZER_BYTES (64u << 20)     /* a SentencePiece model */
#define LIMIT_TOKENIZER_PIECES 1000000
#define LIMIT_CORPUS_BYTES (1ull << 30)       /* text a tokenizer is trained on */

#endif
