/* SPDX-License-Identifier: Apache-2.0
 * The vocabulary of transfuse, the command line. One thread; a process is one verb. verbs.def
 * has a row for each verb and options.def one for each option; help, completion and the checks
 * of the command line come from these rows. What a verb prints for people and programs goes to
 * stdout; progress, hints and errors go to stderr. */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include "client/place.h"
#include "client/transfuse.h"
#include "lib/buf.h"
#include "lib/err.h"
#include "proto/connection.h"
#include "proto/limits.h"
#include "proto/spec.h"
#include "proto/transfused.pb-c.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the program ends with; --help prints the table. */
enum status {
	STATUS_DONE = 0,
	STATUS_FAILED = 1,        /* the job failed, or a file here could not be written */
	STATUS_USAGE = 2,         /* wrong command line or a wrong file given on it */
	STATUS_NO_DAEMON = 3,
	STATUS_REFUSED = 4,       /* by the daemon: key, role, name, state, limit */
	STATUS_CANCELLED = 5,     /* the job was cancelled */
	STATUS_TIMEOUT = 6,       /* of wait: the time is up */
	STATUS_INTERRUPTED = 130, /* ctrl-C; the job goes on */
};

/* ---- the command line (args.c) */

enum option_id {
#define O(id, name, letter, argument, help) OPTION_##id,
#include "client/options.def"
#undef O
	OPTIONS
};
#define GLOBAL_OPTIONS 5 /* the first rows go with every verb */

struct option_row {
	const char *name;         /* without "--" */
	char letter;              /* 0: none */
	const char *argument;     /* for the help; NULL: a flag */
	const char *help;
};
extern const struct option_row option_rows[OPTIONS];

struct client;

struct verb {
	const char *word, *sub;   /* "data", "import"; sub "" for a verb of one word */
	int (*run)(struct client *c, struct err *e); /* a status, or a negative TF_E* */
	const char *operands;     /* "NAME PATH..." */
	int least, most;          /* how many operands; most -1: any number */
	const char *options;      /* names divided by spaces */
	const char *help;         /* one line; "" hides the verb */
	const char *example;
};
extern const struct verb verbs[];
extern const size_t verb_count;

struct words {
	char **word;              /* borrowed from argv */
	int count;
};

struct args {
	struct words given[OPTIONS]; /* every occurrence of an option (a flag: NULLs) */
	struct words operand;
};

/* Reads argv of the verb (argv[0] is skipped). TF_EUSAGE with a sentence. */
int args_read(const struct verb *v, int argc, char **argv, struct args *out, struct err *e);
void args_release(struct args *a);
bool args_has(const struct args *a, enum option_id o);
const char *args_text(const struct args *a, enum option_id o);  /* the last one given; NULL: none */
/* Change *out only when the option was given. */
int args_int(const struct args *a, enum option_id o, int64_t least, int64_t most, int64_t *out,
	     struct err *e);
int args_float(const struct args *a, enum option_id o, double least, double most, double *out,
	       struct err *e);
int text_to_int(const char *what, const char *text, int64_t least, int64_t most, int64_t *out,
		struct err *e);

/* ---- help and completion (help.c) */

bool verb_takes(const struct verb *v, enum option_id o);
/* sub NULL: the first of the word. NULL: there is none. */
const struct verb *verb_find(const char *word, const char *sub);
void help_all(struct buf *out);
void help_verb(const struct verb *v, struct buf *out);
/* The verb's word (and sub) most like the text; NULL when none is near. */
const char *suggest_verb(const char *text);
const char *suggest_sub(const char *word, const char *text);
const char *suggest_option(const struct verb *v, const char *text);

/* ---- asking the daemon (client.c) */

struct client {
	const struct verb *verb;
	struct args args;
	struct transfuse *line;   /* NULL: client_connect was not called */
	const struct place *place; /* of the line */
	struct connection *connection; /* of the line */
	bool refused;             /* the last error was the daemon's no */
};

/* Finds the daemon and begins to connect; a second call does nothing. */
int client_connect(struct client *c, struct err *e);
void client_release(struct client *c);
#define ASK_MS 30000
/* Sends r and waits for an answer of this kind, which the caller frees. */
int client_ask(struct client *c, Tf__Request *r, Tf__Reply__BodyCase want, Tf__Reply **out,
	       struct err *e);
/* The same, given up after timeout_ms. */
int client_ask_for(struct client *c, Tf__Request *r, Tf__Reply__BodyCase want, int64_t timeout_ms,
		   Tf__Reply **out, struct err *e);
/* Notes whether an error was the daemon's, for the exit status; returns rc. */
int client_note(struct client *c, int rc);
/* The jobs that m asks for, as line_list_jobs gives them. */
int client_list_jobs(struct client *c, Tf__JobList *m, uint64_t most,
		     int (*fn)(void *arg, const Tf__Job *job), void *arg, struct err *e);
/* An answer taken out of several outstanding ones: its error, if it is one. */
int client_check(struct client *c, const Tf__Reply *reply, Tf__Reply__BodyCase want, struct err *e);
enum status status_of(const struct client *c, int code);
bool client_interrupted(void);    /* ctrl-C was pressed */
int operand_job(const struct client *c, int i, uint64_t *id, struct err *e);

/* ---- which jobs (selection.c) */

struct selection {
	uint64_t *id;
	size_t count;
};
/* The jobs of the operands, or, oldest first, those with all of --tag and one of the states (none:
 * any). TF_ENOTFOUND when there is none. Release it also after an error. */
int selection_read(struct client *c, const Tf__JobState *state, size_t states,
		   struct selection *out, struct err *e);
void selection_release(struct selection *s);
/* The states of --state. */
int states_read(const struct args *a, Tf__JobState state[LIMIT_FILTERS], size_t *n, struct err *e);

/* ---- for people (format.c) */

struct table {
	int columns, rows, room;
	const char *align;        /* 'l' or 'r' for each column */
	int *width;               /* of each column */
	struct table_cell *cell;  /* row by row, the head first */
	struct buf text;          /* of all cells */
};
void table_init(struct table *t, const char *align, const char *const *head);
void table_add(struct table *t, const char *const *cell);   /* copies; NULL prints as "-" */
void table_print(struct table *t);                          /* and releases it */
/* The same into a buffer, for so many columns (0: any number). */
void table_render(struct table *t, int columns, struct buf *out);
void table_release(struct table *t);   /* what is never printed; twice is fine */
#define FORMAT_MAX 48
void format_bytes(uint64_t bytes, char out[FORMAT_MAX]);    /* "1.4 GB" */
void format_count(uint64_t n, char out[FORMAT_MAX]);        /* "12,345" */
void format_value(double x, char out[FORMAT_MAX]);          /* "12,345", "0.0123457" */
char *format_whole(uint64_t n, char *out);                  /* "12345"; the end of it */
void format_age(int64_t since_ms, char out[FORMAT_MAX]);    /* "3 min", "2 d"; "-" for 0 */
void format_left(const Tf__Job *j, char out[FORMAT_MAX]);   /* until it says it is done; or "" */
void format_until(int64_t at_ms, char out[FORMAT_MAX]);     /* "now", "in 3 min"; "" for 0 */
/* The same when it is now_ms, for those that look at the clock once. */
void format_age_at(int64_t now_ms, int64_t since_ms, char out[FORMAT_MAX]);
void format_until_at(int64_t now_ms, int64_t at_ms, char out[FORMAT_MAX]);
/* The text with control characters shown as '?', so that nothing of it moves the cursor. Free
 * it. */
char *text_safe(const char *text);
int text_width(const char *text);                           /* columns */
void text_cut(char *text, int columns);
int terminal_width(int fd);                                 /* 0: no terminal */
/* A JSON value as indented "key: value" lines. */
void print_json_for_people(const json_t *value, int indent);

/* ---- the whole terminal (screen.c) */

void screen_open(void);
void screen_close(void);
void screen_size(int *width, int *height);
/* Draws lines of text, cut to the terminal; the first of each paragraph is bold. Changes the
 * text. */
void screen_paint(char *text);
#define SCREEN_NOTHING (-1)
#define SCREEN_STALE (-2)         /* it must be drawn again: it has another size, or came back */
int screen_key(int64_t timeout_ms); /* a key that was pressed, or one of these */

/* ---- for programs (json.c) */

json_t *json_of_artefact(const Tf__Artefact *a);
json_t *json_of_audit(const Tf__Audit *a);
json_t *json_of_users(const Tf__Users *users);
json_t *json_of_slot(const Tf__SlotState *s);
json_t *json_of_pairs(size_t n, Tf__KeyValue **pair);
void json_print(json_t *value);                             /* one line; takes the reference */
#define JSON_DIGITS 9 /* of numbers that are not whole */

/* ---- a job for programs (json_job.c) */

/* Appends the job to an object's or array's text that is not closed yet; a comma where one is
 * needed. */
void json_item_job(struct buf *out, const Tf__Job *j);
json_t *json_of_job(const Tf__Job *j);

/* ---- progress (progress.c) */

struct progress_view {
	int width;                /* of the terminal; 0: plain lines */
	bool quiet, drawn;
	int64_t last_ms;          /* of the last plain line or redraw */
	char last[64];            /* state and phase then */
};
void progress_init(struct progress_view *v, bool quiet);
void progress_job(struct progress_view *v, const Tf__Job *j);
void progress_transfer(struct progress_view *v, const char *what, uint64_t done, uint64_t total);
void progress_end(struct progress_view *v);                 /* leaves the line */

/* ---- jobs (submit.c) */

/* Checks and submits the spec with the common options; prints the job, follows it with --wait
 * (or when `follow`). *id is 0 after a dry run. Returns a status. */
int submit(struct client *c, Tf__JobSpec *spec, bool follow, uint64_t *id, struct err *e);
/* Follows a job to its end with progress. The last answer (its jobs[0] is the job) is the caller's.
 * Returns the status of the job. */
int follow_job(struct client *c, uint64_t id, bool quiet, Tf__Reply **last, struct err *e);
/* What of a job is waited for, and until when. */
struct follow {
	bool quiet;
	uint32_t states;          /* a bit for each Tf__JobState; 0: its end */
	int64_t until_ms;         /* monotonic; INT64_MAX: for ever */
};
/* Follows a job until it is so. *last is the caller's. Returns a status: of its end, if that came
 * first; STATUS_TIMEOUT. */
int follow_until(struct client *c, uint64_t id, const struct follow *f, Tf__Reply **last,
		 struct err *e);
/* Whether there is nothing more to wait for, and with which status. */
bool follow_fits(const struct follow *f, const Tf__Job *j, int *status);
/* Follows jobs to their ends and prints those (quiet: nothing); their status together. */
int wait_for_ends(struct client *c, const uint64_t *id, size_t count, bool quiet, struct err *e);
uint32_t follow_left(const struct follow *f);               /* ms of the next question */
/* "job 12 (train emoji): done after 3 min 02 s", and its results. */
void print_end(const Tf__Job *j);

/* ---- transfers (source.c, upload.c, download.c) */

/* Sends what PATH is (a file; a folder or a list of pictures as one tar). *id is the caller's. kind
 * names what was found. */
int send_source(struct client *c, const char *path, char **id, const char **kind, struct err *e);
/* What send_source would do: its size in bytes and its kind. */
int look_at_source(const char *path, uint64_t *bytes, const char **kind, struct err *e);

struct upload;
int upload_open(struct client *c, const char *name, uint64_t size, struct upload **out,
		struct err *e);
int upload_put(struct upload *u, const void *data, size_t len, struct err *e);
/* Frees u, whether it succeeds or not. */
int upload_close(struct upload *u, char **id, struct err *e);
void upload_abandon(struct upload *u);                          /* NULL is fine */

/* Fetches the files of a job or artefact whose path begins with prefix (which is cut off) into
 * folder. names (may be NULL) gets their paths, a line each. */
int fetch_files(struct client *c, Tf__FileOf *of, const char *prefix, const char *folder,
		struct buf *names, struct err *e);
/* One file to a path. */
int fetch_one(struct client *c, Tf__FileOf *of, const char *path, const char *to, struct err *e);

/* ---- the worker program, asked for memory and sizes (plan.c) */

/* device NULL: "cpu". facts: an object of texts and numbers by key, borrowed. *plan is the
 * caller's. */
int plan_experiment(const char *experiment, const char *device, const json_t *facts, json_t **plan,
		    struct err *e);
void print_plan(const json_t *plan);

/* ---- the daemon's state (verbs_daemon.c) */

int ask_status(struct client *c, Tf__Reply **out, struct err *e);

/* ---- slots (verbs_slots.c) */

int ask_slots(struct client *c, Tf__Reply **out, struct err *e);
/* A row for each slot, with what the driver says of its GPU. */
void table_of_slots(struct table *t, const Tf__Slots *s);

/* ---- the verbs: one function a row */
#define V(word, sub, run, operands, least, most, options, help, example)                          \
	int run(struct client *c, struct err *e);
#include "client/verbs.def"
#undef V

#endif
