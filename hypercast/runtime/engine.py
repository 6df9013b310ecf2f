"""Where jobs run: in this process one after the other, or in Ray actors side by side."""

import logging
from typing import Any, Protocol


class Engine(Protocol):
    """Starts jobs and calls their methods. Calls to one job run in the order in which they were made."""

    def start(self, job: type, *arguments: Any) -> Any:
        """A handle of a new job."""
        ...

    def call(self, handle: Any, method: str, *arguments: Any) -> Any:
        """A promise of ``method``'s result; ``arguments`` may be promises and are waited for."""
        ...

    def result(self, promise: Any) -> Any:
        """The result of a promise, or the error that the job raised."""
        ...

    def close(self) -> None:
        """End all jobs."""
        ...


class LocalEngine:
    """Every call is made at once, in this process; a promise is its result."""

    def start(self, job: type, *arguments: Any) -> Any:
        return job(*arguments)

    def call(self, handle: Any, method: str, *arguments: Any) -> Any:
        return getattr(handle, method)(*arguments)

    def result(self, promise: Any) -> Any:
        return promise

    def close(self) -> None:
        return None


class RayEngine:
    """Each job is a Ray actor with a process of its own, on this machine or a cluster that Ray finds."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)

    def start(self, job: type, *arguments: Any) -> Any:
        # Jobs set their own number of threads and outnumber small machines' cores: the kernel shares them out.
        return self._ray.remote(num_cpus=0)(job).remote(*arguments)

    def call(self, handle: Any, method: str, *arguments: Any) -> Any:
        return getattr(handle, method).remote(*arguments)

    def result(self, promise: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(promise)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.ActorDiedError as error:
            # What a job's constructor raised comes wrapped twice; a process that was killed has no such cause.
            if isinstance(failed := error.args[0], exceptions.RayTaskError):
                raise failed.cause from error
            raise

    def close(self) -> None:
        self._ray.shutdown()
