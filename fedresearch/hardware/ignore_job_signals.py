"""Importing this module makes the process and its forks ignore the signals that a scheduler sends to a whole job.

The main process stops its workers; they must not end before it has finished its round.
"""

import signal

for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, signal.SIG_IGN)
