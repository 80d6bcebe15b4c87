# SPDX-License-Identifier: Apache-2.0
"""BullMQ for queue_peers: a line to its queue for one who waits for each answer, and its worker.

usage: bullmq_line.py PORT    # a worker: says that it has loaded, begins at the end of a line of its input, runs until it is killed
Its jobs: nothing; run, a process of data.command; stamp, into the file data.path the time; wait, until there is data.path.go."""
import asyncio, os, sys, time

from bullmq import Queue, Worker

NAME = 'bench'


class Line:
    def __init__(self, port):
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.queue = Queue(NAME, {'connection': f'redis://127.0.0.1:{port}'})

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def add(self, name, **data):
        return self.run(self.queue.add(name, data))

    def add_many(self, count, name, **data):
        self.run(self.queue.addBulk([{'name': name, 'data': data} for _ in range(count)]))

    def count(self, *states):
        return self.run(self.queue.getJobCountByTypes(*states))

    def waiting(self):
        return self.run(self.queue.getWaiting(0, -1))

    def empty(self):
        self.run(self.queue.obliterate(True))


async def process(job, token):
    now, path = time.time(), job.data.get('path')
    if job.name == 'run':  # nothing else is to be done meanwhile
        command = job.data['command']
        os.waitpid(os.posix_spawn(command[0], command, {}), 0)
    elif job.name == 'stamp':
        with open(path + '.new', 'w') as f:
            f.write(str(now))
        os.rename(path + '.new', path)
    elif job.name == 'wait':
        with open(path, 'a') as f:
            f.write('started\n')
        while not os.path.exists(path + '.go'):
            await asyncio.sleep(0.01)


async def work(port):
    worker = Worker(NAME, process, {'connection': f'redis://127.0.0.1:{port}', 'autorun': False})
    worker.on('error', lambda *_: None)
    print('loaded', flush=True)
    sys.stdin.readline()
    await worker.run()


if __name__ == '__main__':
    asyncio.run(work(int(sys.argv[1])))
