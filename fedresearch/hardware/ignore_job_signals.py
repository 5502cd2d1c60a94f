"""Imported, it lets this process, and what it forks, outlive the signals that are sent to all of a job at once.

The main process ends its workers; they must not go before it has finished its round.
"""

import signal

for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, signal.SIG_IGN)
