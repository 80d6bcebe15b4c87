# SPDX-License-Identifier: Apache-2.0
"""BullMQ for queue_peers: a line to its queue for one who waits for each answer, and its worker.

usage: bullmq_line.py PORT CONCURRENCY    # a worker of jobs 'nothing', 'true', 'stamp' and 'sleep' until it is killed"""
import asyncio, os, sys, time

from bullmq import Queue, Worker

NAME = 'bench'
STALLED = dict(lockDuration=3000, stalledInterval=1000)  # a lost job is found in seconds; the default is half a minute


class Line:
    def __init__(self, port):
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.queue = Queue(NAME, {'connection': f'redis://127.0.0.1:{port}'})

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def add(self, name, **data):
        return self.run(self.queue.add(name, data))

    def add_many(self, name, count):
        self.run(self.queue.addBulk([{'name': name, 'data': {}} for _ in range(count)]))

    def count(self, *states):
        return self.run(self.queue.getJobCountByTypes(*states))

    def waiting(self):
        return self.run(self.queue.getWaiting(0, -1))

    def empty(self):
        self.run(self.queue.obliterate(True))


async def process(job, token):
    if job.name == 'true':
        os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)
    elif job.name == 'stamp':
        with open(job.data['path'] + '.new', 'w') as f:
            f.write(str(time.time()))
        os.rename(job.data['path'] + '.new', job.data['path'])
    elif job.name == 'sleep':
        with open(job.data['path'], 'a') as f:
            f.write('started\n')
        await asyncio.sleep(600)


async def work(port, concurrency):
    worker = Worker(NAME, process, {'connection': f'redis://127.0.0.1:{port}', 'concurrency': concurrency, 'autorun': False, **STALLED})
    worker.on('error', lambda *_: None)
    await worker.run()


if __name__ == '__main__':
    asyncio.run(work(int(sys.argv[1]), int(sys.argv[2])))
