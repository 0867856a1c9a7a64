"""Records images to the given path until the process is ended; prints the number of each episode after adding it."""

import itertools
import signal
import sys

from flowchunk.datasets.recorder import StoreWriter
from tests.datasets.image_stores import ACTIONS, OBSERVATIONS
from tests.datasets.test_unfinished_recordings import episode

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    with StoreWriter(sys.argv[1], observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        for number in itertools.count():
            writer.add_episode(*episode(number))
            print(number, flush=True)
