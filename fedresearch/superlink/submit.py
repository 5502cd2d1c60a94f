"""Submits an experiment to a SuperLink, and waits for it."""

from fedresearch.errors import InputError
from fedresearch.experiment.builder import Builder
from fedresearch.experiment.request import RunRequest
from fedresearch.runs.directory import refuse_used
from fedresearch.superlink.connection import SuperLink
from fedresearch.superlink.run_config import ERROR


def submit(request: RunRequest) -> None:
    """Submit an experiment, print its log, and return when it has finished.

    Raises
    ------
    InputError
        With the errors that the ServerApp reports, or where to read why it failed.
    """
    if not request.may_resume:
        refuse_used(request.directory)
    superlink = Builder(request.choices).build(
        "hardware", request.config.hardware, SuperLink, num_supernodes=request.config.federation.num_supernodes
    )
    refused: list[str] = []
    address = request.config.hardware["address"]
    where = f"submitting to {address}" if address else "starting a SuperLink and its SuperNodes"
    print(f"{where}; the first round takes longer", flush=True)
    if not address and not request.config.hardware["secure"]:
        print("any user of this machine can join as a SuperNode; hardware.secure=true prevents that", flush=True)
    with superlink:
        run_id = superlink.submit(request.dumps())
        try:
            for line in superlink.log(run_id):
                if line.startswith(ERROR):
                    refused.append(line.removeprefix(ERROR))
                elif not refused:  # a traceback follows it
                    print(line, flush=True)
        except KeyboardInterrupt:
            superlink.stop(run_id)
            raise
        status = superlink.status(run_id)
        if refused or status != "finished:completed":
            failed = f"the run failed on the SuperLink ({status}); see above, and {request.directory}"
            raise InputError(*(refused or [failed]), *superlink.troubles())
