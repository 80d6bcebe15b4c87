/* SPDX-License-Identifier: Apache-2.0
 * What the command line is measured against: a program that connects with CURVE, sends one message,
 * takes its echo and exits. usage: echo ENDPOINT SERVER_KEY PUBLIC_KEY SECRET_KEY */
#include <string.h>
#include <zmq.h>

int main(int argc, char **argv)
{
	void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
	char text[200], back[sizeof text];

	memset(text, 'x', sizeof text);
	if (argc != 5 || zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, argv[2], 41) < 0 ||
	    zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, argv[3], 41) < 0 ||
	    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, argv[4], 41) < 0 ||
	    zmq_connect(socket, argv[1]) < 0 ||
	    zmq_send(socket, text, sizeof text, 0) != sizeof text ||
	    zmq_recv(socket, back, sizeof back, 0) != sizeof back ||
	    memcmp(text, back, sizeof text) != 0)
		return 1;
	zmq_close(socket);
	zmq_ctx_term(context);
	return 0;
}
