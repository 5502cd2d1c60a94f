"""Running an experiment elsewhere: it is submitted to a SuperLink, which is waited for."""

from fedresearch.building import Builder
from fedresearch.errors import InputError
from fedresearch.hardware.superlink import SuperLink
from fedresearch.runs.directory import refuse_used
from fedresearch.submission import ERROR, Submission


def submit(submission: Submission) -> None:
    """Submit an experiment, print what its log says, and return when it has finished.

    Raises
    ------
    InputError
        With what the ServerApp refuses, or where to read why it failed.
    """
    if not submission.again:
        refuse_used(submission.directory)
    superlink = Builder(submission.choices).build(
        "hardware", submission.config.hardware, SuperLink, num_supernodes=submission.config.federation.num_supernodes
    )
    refused: list[str] = []
    address = submission.config.hardware["address"]
    where = f"submitting to {address}" if address else "starting a SuperLink and its SuperNodes"
    print(f"{where}; the first round takes a while", flush=True)
    if not address and not submission.config.hardware["secure"]:
        print("any user of this machine can join as a SuperNode; hardware.secure=true prevents that", flush=True)
    with superlink:
        run_id = superlink.submit(submission.dumps())
        try:
            for line in superlink.log(run_id):
                if line.startswith(ERROR):
                    refused.append(line.removeprefix(ERROR))
                elif not refused:  # after it comes its traceback
                    print(line, flush=True)
        except KeyboardInterrupt:
            superlink.stop(run_id)
            raise
        status = superlink.status(run_id)
        if refused or status != "finished:completed":
            failed = f"the run failed on the SuperLink ({status}); see above, and {submission.directory}"
            raise InputError(*(refused or [failed]), *superlink.troubles())
