"""Records images to the path that it is given until it is ended; prints the number of each episode when it is added."""

import itertools
import sys

from flowchunk.datasets.recorder import StoreWriter
from tests.datasets.image_stores import ACTIONS, OBSERVATIONS
from tests.datasets.test_unfinished_recordings import episode

if __name__ == "__main__":
    with StoreWriter(sys.argv[1], observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        for number in itertools.count():
            writer.add_episode(*episode(number))
            print(number, flush=True)
