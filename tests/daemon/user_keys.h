/* SPDX-License-Identifier: Apache-2.0
 * Two public keys, for the users of tests. */
#ifndef TESTS_DAEMON_USER_KEYS_H
#define TESTS_DAEMON_USER_KEYS_H

#define KEY_A "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
#define KEY_B "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"

#endif
