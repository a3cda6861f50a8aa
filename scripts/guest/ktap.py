# SPDX-License-Identifier: GPL-2.0
"""Results of a script inside a test machine, as KTAP."""


class Results:
    """Compares, and goes on whatever comes of it."""

    def __init__(self):
        self.count = 0
        self.failed = False
        print("KTAP version 1")

    def expect(self, what, got, wanted):
        self.count += 1
        good = got == wanted
        if not good:
            self.failed = True
            print(f"# got {got}, wanted {wanted}")
        print(f"{'ok' if good else 'not ok'} {self.count} {what}", flush=True)

    def end(self):
        """Says how many there were; returns whether any was not as wanted."""
        print(f"1..{self.count}")
        return self.failed
