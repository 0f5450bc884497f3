"""What the clients in Python share: named checks, each tried though another failed."""

import sys
import time
import traceback


class Checks:
    def __init__(self, client):
        self.client, self.passed, self.failed = client, 0, []

    def check(self, name):
        """Runs the function below it at once."""

        def decorate(act):
            try:
                act()
            except Exception as error:  # whatever it is, the others are tried
                print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
                traceback.print_exc()
                self.failed.append(name)
            else:
                print(f"ok   {name}", flush=True)
                self.passed += 1
            return act

        return decorate

    def end(self):
        print(f"{self.client}: {self.passed} passed, {len(self.failed)} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def eventually(act, seconds=120):
    """What `act` returns once it neither fails nor is refused; its last failure otherwise."""
    end = time.monotonic() + seconds
    while True:
        try:
            return act()
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
