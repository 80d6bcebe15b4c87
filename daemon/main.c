/* SPDX-License-Identifier: Apache-2.0
 * transfused: reads its options, opens the state, says that it is ready, and runs the loop until it
 * is told to leave. Exit statuses: 0 left as told, 1 could not start, 2 wrong usage. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* One datagram to the service manager's socket, if there is one (sd_notify's protocol). */
static void notify_manager(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	size_t n = path ? strlen(path) : 0;
	int fd;

	if (n < 2 || n >= sizeof to.sun_path || (*path != '/' && *path != '@'))
		return;
	memcpy(to.sun_path, path, n);
	if (*path == '@')
		to.sun_path[0] = 0;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || sendto(fd, "READY=1", 7, MSG_NOSIGNAL, (struct sockaddr *)&to,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0)
		log_warn("the service manager was not told: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* Closes a descriptor without freeing its number: what is opened later must lie above the ones
 * that a worker is given (spawn.c). */
static void retire_fd(int fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0 || dup3(null, fd, O_CLOEXEC) < 0)
		log_warn("--ready-fd %d: %s", fd, strerror(errno));
	if (null >= 0 && null != fd)
		close(null);
}

void ready_say(struct daemon *d)
{
	if (d->options.ready_fd >= 0) {
		if (write((int)d->options.ready_fd, "\n", 1) < 0)
			log_warn("--ready-fd %d: %s", (int)d->options.ready_fd, strerror(errno));
		retire_fd((int)d->options.ready_fd);
		d->options.ready_fd = -1;
	}
	notify_manager();
	log_info("ready: state=%s slots=%u gpus=%zu jobs=%llu", d->folder, d->machine.slots,
		 d->machine.gpus, (unsigned long long)state_count(d->state, STATE_LIVE));
}

/* The parent waits for the newline of readiness; the child goes on in a session of its own. */
static void go_to_background(struct daemon *d)
{
	int fd[2];
	char byte;
	pid_t pid;

	if (pipe(fd) < 0 || (pid = fork()) < 0)
		die(1, "cannot go to the background: %s", strerror(errno));
	if (pid > 0) {
		close(fd[1]);
		if (read(fd[0], &byte, 1) == 1)
			_exit(0);
		_exit(1); /* the child has said why */
	}
	close(fd[0]);
	setsid();
	d->options.ready_fd = fd[1];
	fcntl(fd[1], F_SETFD, FD_CLOEXEC);
}

/* Descriptors 0 to 2 must be something, or a socket would get their numbers. */
static void fill_descriptors(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

int main(int argc, char **argv)
{
	static struct daemon d;
	enum options_result result;
	struct err e = ERR_INIT;
	int level;

	die_set_program("transfused");
	fill_descriptors();
	if (argc > 1 && strcmp(argv[1], "--read-dataset") == 0)
		return reader_main(argc - 2, argv + 2);
	if (argc > 1 && strcmp(argv[1], "--watch-gpus") == 0)
		return gpu_probe_main(argc - 2, argv + 2);
	if (argc > 1 && keep_knows(argv[1]))
		return keep_main(argc, argv);
	if (options_read(argc, argv, &d.options, &result, &e) < 0)
		die(2, "%s", e.text);
	if (result == OPTIONS_EXIT)
		return 0;
	if (log_level_find(d.options.log_level, &level, &e) < 0)
		die(2, "%s", e.text);
	log_init("transfused", (enum log_level)level);
	d.argc = argc;
	d.argv = argv;
	if (d.options.background)
		go_to_background(&d);
	if (daemon_open(&d, &e) < 0)
		die(1, "%s", e.text);
	if (d.options.background && log_file_open(&d, &e) < 0)
		die(1, "%s", e.text);
	ready_say(&d);
	loop_run(&d);
	log_info("left");
	daemon_close(&d);
	return 0;
}
